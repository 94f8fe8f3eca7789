//! How times are measured.

use std::time::{Duration, Instant};

/// Measures the microseconds per call.
pub fn time(mut call: impl FnMut()) -> f64 {
    // Warm up, then count the calls that fit into one burst of 20 ms.
    call();
    let start = Instant::now();
    let mut calls = 0_u32;
    while start.elapsed() < Duration::from_millis(20) {
        call();
        calls += 1;
    }
    let mut bursts: Vec<f64> = (0..11)
        .map(|_| {
            let start = Instant::now();
            (0..calls).for_each(|_| call());
            start.elapsed().as_secs_f64() * 1e6 / f64::from(calls)
        })
        .collect();
    bursts.sort_by(f64::total_cmp);
    bursts[bursts.len() / 2]
}
