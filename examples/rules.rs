//! Compares all rules on the bundled digits: how much relevance each assigns to inputs and sinks,
//! and a picture of their maps.
//!
//! `cargo run --release --example rules --features examples` writes rules.png. `-- FILE` writes it elsewhere.

// The example `mnist` uses more of this reader.
#[allow(dead_code)]
#[path = "mnist/idx.rs"]
mod idx;

use relprop::heatmap::{Canvas, diverging, sequential, text_width};
use relprop::io::StateDict;
use relprop::{
    BiasMode, Cause, Composite, Epsilon, Explanation, Gamma, RelevanceRule, Relu, Rule, Softmax,
    Sweep, Targets, ZBox,
};

use idx::Dataset;

type Failure = Box<dyn std::error::Error>;
type Named = (&'static str, Box<dyn RelevanceRule<f32>>);

/// The number of digits for the table of averages. The picture shows one digit of each kind.
const COUNTED: usize = 200;

/// The rules, with their names in the picture. Two are missing: in a network without pooling or
/// sums, `Norm` equals `Epsilon`; and `Pass` requires layers with as many inputs as outputs.
fn rules() -> Result<Vec<Named>, relprop::Error> {
    // Pixels are in the range 0 to 1.
    let pixels = || ZBox::new(0.0, 1.0);
    let first = |rule: Box<dyn RelevanceRule<f32>>| {
        Composite::new(Gamma::default()).first(rule).last(Rule::Epsilon)
    };
    Ok(vec![
        ("LRP-0", Box::new(Rule::Lrp0)),
        ("epsilon", Box::new(Rule::Epsilon)),
        ("epsilon 0.25 rms", Box::new(Epsilon::relative_to_rms(0.25)?)),
        ("bias ignored", Box::new(Epsilon::default().with_bias(BiasMode::Ignore))),
        ("gamma 0.25", Box::new(Rule::Gamma)),
        ("gamma plain 0.25", Box::new(Rule::GammaPlain)),
        ("gamma 1", Box::new(Gamma::new(1.0)?)),
        ("z+", Box::new(Rule::ZPlus)),
        ("alpha 2 beta 1", Box::new(Rule::AlphaBeta)),
        ("relative", Box::new(Rule::Relative)),
        ("absolute", Box::new(Rule::AbsLrp)),
        ("sign, eps", Box::new(Composite::new(Rule::Epsilon).first(Rule::Sign))),
        ("z-box, eps", Box::new(Composite::new(Rule::Epsilon).first(pixels()?))),
        ("w squared", Box::new(Rule::WSquare)),
        ("flat", Box::new(Rule::Flat)),
        ("z-box, gamma, eps", Box::new(first(Box::new(pixels()?)))),
        ("w2, gamma, eps", Box::new(first(Box::new(Rule::WSquare)))),
        ("flat, gamma, eps", Box::new(first(Box::new(Rule::Flat)))),
    ])
}

fn main() -> Result<(), Failure> {
    let out = std::env::args_os().nth(1).unwrap_or_else(|| "rules.png".into());
    let weights = StateDict::from_safetensors(include_bytes!("mnist/mlp.safetensors"))?;
    let mut builder = weights.builder::<f32>();
    for (name, inputs, outputs) in [("net.1", 784, 320), ("net.3", 320, 120), ("net.5", 120, 40)] {
        builder = builder.linear(name, inputs, outputs).layer(Relu);
    }
    let model = builder.linear("net.7", 40, 10).layer(Softmax).build()?;
    let images = include_bytes!("mnist/digits-images-idx3-ubyte.gz");
    let labels = include_bytes!("mnist/digits-labels-idx1-ubyte.gz");
    let digits = Dataset::read(&images[..], &labels[..])?;
    let inputs: Vec<Vec<f32>> = digits
        .images
        .iter()
        .map(|image| image.iter().map(|&v| f32::from(v) / 255.0).collect())
        .collect();

    let rules = rules()?;
    // The network runs once per digit, for any number of rules.
    let sweep = model.sweep(rules.iter().map(|(_, rule)| rule))?.targets(Targets::Predicted)?;
    count(&rules, &sweep, &inputs[..COUNTED.min(inputs.len())])?;
    for (name, rule) in &rules {
        for finding in model
            .check(rule)?
            .iter()
            .filter(|finding| finding.code != relprop::Code::SoftmaxLast)
            .take(1)
        {
            println!("{name}: {finding}");
        }
    }

    let ten: Vec<usize> = (0..10)
        .filter_map(|digit| digits.labels.iter().position(|&label| label == digit))
        .collect();
    let chosen: Vec<&[f32]> = ten.iter().map(|&index| inputs[index].as_slice()).collect();
    draw(&rules, &sweep, &chosen, digits.images.columns)?.write_png(&out)?;
    println!("\nwrote {}", out.to_string_lossy());
    Ok(())
}

/// Prints one line per rule: where the relevance of the prediction ends up on average, in percent
/// of the output.
fn count(rules: &[Named], sweep: &Sweep<f32>, inputs: &[Vec<f32>]) -> Result<(), Failure> {
    const SINKS: [Cause; 5] =
        [Cause::Bias, Cause::Stabilizer, Cause::Empty, Cause::Dead, Cause::Rest];
    let mut means = vec![[0.0; 2 + SINKS.len()]; rules.len()];
    for input in inputs {
        for (explanation, means) in sweep.explain_slice(input)?.iter().zip(&mut means) {
            let predicted = explanation.predicted();
            let ledger = explanation.ledger(predicted)?;
            let per_cent = 100.0 / ledger.output() / inputs.len() as f64;
            // The part whose sign differs from the output's. The output may be negative.
            let sign = ledger.output().signum();
            let against = explanation
                .relevance(predicted)?
                .iter()
                .map(|&r| sign * (sign * f64::from(r)).min(0.0))
                .sum();
            let parts = [ledger.inputs(), against]
                .into_iter()
                .chain(SINKS.map(|cause| ledger.total(cause)));
            means.iter_mut().zip(parts).for_each(|(mean, part)| *mean += part * per_cent);
        }
    }
    println!(
        "where the relevance of the predicted output ends up, in % of the output, \
         mean of {} digits\n",
        inputs.len()
    );
    println!(
        "{:<18} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "rule", "inputs", "(of that", "bias", "stabil-", "empty", "dead", "rest"
    );
    println!("{:<18} {:>9} {:>9} {:>9} {:>9}", "", "", "against)", "", "izer");
    for ((name, _), means) in rules.iter().zip(&means) {
        print!("{name:<18}");
        for mean in means {
            print!(" {mean:>9.2}");
        }
        println!();
    }
    println!();
    Ok(())
}

/// Draws one row per rule and one column per digit. Each map shows the predicted output, scaled by
/// the map's strongest pixel.
fn draw(
    rules: &[Named],
    sweep: &Sweep<f32>,
    inputs: &[&[f32]],
    columns: usize,
) -> Result<Canvas, relprop::Error> {
    let (cell, text, gap, margin, names, head) = (2, 2, 8, 16, 230, 52);
    let tile = columns * cell;
    let (left, top) = (
        |column: usize| margin + names + column * (tile + gap),
        |row: usize| margin + head + row * (tile + gap),
    );
    let (white, black, gray) = ([255; 3], [0; 3], [190; 3]);
    let title = "One network, ten digits, all rules";
    let legend = "red: for what was read, blue: against; the last three: first, middle, last layer";
    let width = left(inputs.len()).max(margin + text_width(title, text)) + margin;
    let mut canvas = Canvas::new(width, top(1 + rules.len()) + margin, white)?;
    canvas.draw_text(margin, margin, title, text, black);
    canvas.draw_text(margin, margin + 22, legend, text, black);
    for (row, name) in ["input"].into_iter().chain(rules.iter().map(|(name, _)| *name)).enumerate()
    {
        canvas.draw_text(margin, top(row) + tile / 2 - 7, name, text, black);
    }
    for (column, input) in inputs.iter().enumerate() {
        canvas.draw_map(left(column), top(0), input, columns, cell, sequential);
        let maps: Vec<Explanation<f32>> = sweep.explain_slice(input)?;
        for (row, explanation) in maps.iter().enumerate() {
            let (x, y) = (left(column), top(1 + row));
            canvas.fill_rect(x - 1, y - 1, tile + 2, tile + 2, gray);
            let relevance = explanation.relevance(explanation.predicted())?;
            canvas.draw_map(x, y, relevance.as_slice(), columns, cell, diverging);
        }
    }
    Ok(canvas)
}
