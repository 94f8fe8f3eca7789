//! Explains one sample of a network with two dense layers and prints everything there is to know.
//!
//! `cargo run --example quickstart`

use relprop::nalgebra::{self, dmatrix, dvector};
use relprop::{Linear, Relu, Rule, Sequential};

fn main() -> Result<(), relprop::Error> {
    let model = Sequential::builder()
        .layer(Linear::new(dmatrix![1.0, -1.0; 0.5, 2.0; 0.0, 1.0], dvector![0.0, 0.1, -0.2])?)
        .layer(Relu)
        .layer(Linear::new(dmatrix![1.0, 1.0, -1.0; -1.0, 0.5, 2.0], dvector![0.05, 0.0])?)
        .build()?;
    println!("{model}\n");

    let explanation = model.explain(&dvector![1.0, 2.0], Rule::Epsilon)?;
    println!("{explanation}\n");
    for target in 0..model.outputs() {
        println!("{}\n", explanation.ledger(target)?);
    }
    Ok(())
}
