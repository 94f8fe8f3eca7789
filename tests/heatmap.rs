//! Images of relevances.

use std::path::Path;

use relprop::Error;
use relprop::heatmap::{Canvas, diverging, over_channels, sequential};

#[test]
fn a_map_is_scaled_by_its_largest_magnitude_and_centred_on_zero() -> Result<(), Error> {
    let mut canvas = Canvas::new(4, 2, [9; 3])?;
    canvas.draw_map(0, 0, &[2.0_f32, -2.0, f32::NAN, 1.0], 2, 1, diverging);
    let drawn = [
        canvas.pixel(0, 0),
        canvas.pixel(1, 0),
        canvas.pixel(0, 1),
        canvas.pixel(1, 1),
        canvas.pixel(2, 0),
    ];
    assert_eq!(
        drawn,
        [diverging(1.0), diverging(-1.0), [255; 3], diverging(0.5), [9; 3]].map(Some)
    );
    canvas.draw_map(0, 0, &[0.0_f64, f64::INFINITY], 2, 1, diverging);
    assert_eq!([canvas.pixel(0, 0), canvas.pixel(1, 0)], [Some([255; 3]); 2]);
    canvas.draw_map(0, 0, &[f64::from_bits(1)], 1, 1, diverging);
    assert_eq!(canvas.pixel(0, 0), Some(diverging(1.0)));
    Ok(())
}

#[test]
fn pixels_outside_are_not_drawn() -> Result<(), Error> {
    let mut canvas = Canvas::new(3, 3, [1; 3])?;
    let blank = canvas.clone();
    canvas.fill_rect(usize::MAX, usize::MAX, usize::MAX, usize::MAX, [0; 3]);
    canvas.fill_rect(3, 0, 2, 2, [0; 3]);
    canvas.draw_text(5, 0, "far \u{e9}", usize::MAX, [0; 3]);
    canvas.draw_map(usize::MAX, 0, &[1.0_f32; 4], 0, usize::MAX, sequential);
    canvas.draw_map(0, 0, &[1.0_f32; 4], 2, 0, sequential);
    assert_eq!(canvas, blank);
    assert_eq!(canvas.pixel(0, usize::MAX), None);
    Ok(())
}

#[test]
fn a_png_reads_back_as_it_was_drawn() -> Result<(), Box<dyn std::error::Error>> {
    let mut canvas = Canvas::new(30, 10, [255; 3])?;
    canvas.draw_text(1, 1, "Ab 0%", 1, [3, 5, 7]);
    let file = canvas.to_png()?;
    let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info()?;
    let mut pixels = vec![0; 30 * 10 * 3];
    let info = reader.next_frame(&mut pixels)?;
    assert_eq!((info.width, info.height), (30, 10));
    let drawn = (0..10).flat_map(|y| (0..30).map(move |x| (x, y)));
    let drawn: Vec<u8> = drawn.filter_map(|(x, y)| canvas.pixel(x, y)).flatten().collect();
    assert_eq!(pixels, drawn);
    Ok(())
}

#[test]
fn impossible_canvases_and_paths_are_errors() -> Result<(), Error> {
    assert!(matches!(Canvas::new(0, 1, [0; 3]), Err(Error::InvalidParameter { .. })));
    assert!(matches!(Canvas::new(1, usize::MAX, [0; 3]), Err(Error::InvalidParameter { .. })));
    let nowhere = Path::new("no such folder").join("picture.png");
    assert!(matches!(Canvas::new(1, 1, [0; 3])?.write_png(nowhere), Err(Error::Io { .. })));
    Ok(())
}

#[test]
fn an_overlay_is_gray_where_nothing_is_relevant() {
    let mut canvas = Canvas::new(8, 4, [0; 3]).unwrap();
    let image = [0.0, 0.5, 1.0, 0.0, 0.0, 0.5, 1.0, 0.0, 0.0, 0.5, 1.0, 0.0];
    let relevance = [0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0];
    canvas.draw_overlay(0, 0, &image, &relevance, [3, 2, 2].into(), 2).unwrap();
    assert_eq!(canvas.pixel(0, 0), Some([150; 3]));
    assert_eq!(canvas.pixel(0, 3), Some([255; 3]));
    assert_eq!(canvas.pixel(3, 3), Some(diverging(-1.0)));
    canvas.draw_image(4, 0, &image, [3, 2, 2].into(), 2).unwrap();
    assert_eq!([canvas.pixel(4, 0), canvas.pixel(4, 3)], [Some([0; 3]), Some([255; 3])]);
}

#[test]
fn invalid_images_are_errors() {
    let mut canvas = Canvas::new(8, 4, [0; 3]).unwrap();
    assert!(matches!(over_channels(&[1.0; 5], [1, 2, 2].into()), Err(Error::Shape { .. })));
    assert!(matches!(over_channels(&[1.0; 4], 4.into()), Err(Error::Shape { .. })));
    assert!(canvas.draw_image(0, 0, &[1.0; 5], [1, 2, 2].into(), 1).is_err());
    assert!(canvas.draw_overlay(0, 0, &[1.0; 4], &[1.0; 3], [1, 2, 2].into(), 1).is_err());
    assert!(Canvas::grid(&[], 1, 1, [0; 3]).is_err());
    assert!(Canvas::grid(&[canvas.clone(), canvas], 1, usize::MAX, [0; 3]).is_err());
    // Values that are not finite are drawn like zeros.
    let mut canvas = Canvas::new(2, 1, [0; 3]).unwrap();
    canvas
        .draw_overlay(0, 0, &[f64::NAN, 1.0], &[f64::INFINITY, 0.0], [1, 1, 2].into(), 1)
        .unwrap();
    assert_eq!(canvas.pixel(1, 0), Some([255; 3]));
}
