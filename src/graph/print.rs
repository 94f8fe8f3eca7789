//! Printing a network as PyTorch does, nested by name.

use std::fmt;

use super::{Graph, InputSource, Node};
use crate::layer::Layer;
use crate::scalar::Scalar;

/// The deepest nesting by names.
const DEPTH: usize = 64;

/// A layer as PyTorch prints it.
pub(crate) fn describe<T: Scalar>(layer: &dyn Layer<T>) -> String {
    format!("{}({})", layer.kind(), layer.arguments())
}

impl<T: Scalar> fmt::Display for Graph<T> {
    /// Prints one line for each layer, with the values that it reads unless that is only the output
    /// of the layer on the line before. The alternate form `{:#}` adds the output shape and the
    /// number of parameters of each layer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Graph(")?;
        for input in self.input_list() {
            let kind = match input.source {
                InputSource::Explained => "Input",
                InputSource::Given => "Given",
                InputSource::Whole => "GivenWhole",
                InputSource::Constant(_) => "Constant",
            };
            write!(f, "\n  ({}): {kind}({})", input.name, input.shape)?;
        }
        let mut before = self.input_list().len().checked_sub(1);
        for (number, node) in self.node_list().iter().enumerate() {
            write!(f, "\n  ({}): {}", node.name, describe(&*node.layer))?;
            if before.map(|value| [value]).as_ref().map(<[_; 1]>::as_slice)
                != Some(node.inputs.as_slice())
            {
                let names: Vec<&str> =
                    node.inputs.iter().map(|&value| self.name_of(value)).collect();
                write!(f, " <- {}", names.join(", "))?;
            }
            write_sizes(f, node)?;
            before = Some(self.value_of(number));
        }
        // The output of the last layer is not worth a line.
        let last = before;
        let only = self.output_list().len() == 1;
        for output in self.output_list().iter().filter(|output| !only || Some(output.value) != last)
        {
            write!(f, "\n  ({}): Output <- {}", output.name, self.name_of(output.value))?;
        }
        f.write_str("\n)")?;
        self.write_totals(f)
    }
}

impl<T: Scalar> Graph<T> {
    /// Writes the network as a `Sequential`, for layers in a row.
    pub(crate) fn write_sequential(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sequential(")?;
        let nodes: Vec<&Node<T>> = self.nodes().collect();
        self.write_nodes(f, &outermost(&nodes), "", 1)?;
        f.write_str("\n)")?;
        self.write_totals(f)
    }

    fn write_totals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            let (input, output) = (self.input_shape(), self.output_shape());
            write!(f, "\n{input} -> {output}, {} parameters", self.parameters())?;
        }
        Ok(())
    }

    /// Writes the layers whose names begin with `prefix`, one per line.
    fn write_nodes(
        &self,
        f: &mut fmt::Formatter<'_>,
        nodes: &[&Node<T>],
        prefix: &str,
        depth: usize,
    ) -> fmt::Result {
        let mut at = 0;
        while let Some(node) = nodes.get(at) {
            let name = node.name.strip_prefix(prefix).unwrap_or(&node.name);
            let indent = "  ".repeat(depth);
            if let Some((group, _)) = name.split_once('.')
                && depth < DEPTH
            {
                let inner = format!("{prefix}{group}.");
                // All following layers with the same first part of the name form one nested
                // Sequential.
                let count = nodes[at..]
                    .iter()
                    .take_while(|node| node.name.starts_with(&inner))
                    .count()
                    .max(1);
                write!(f, "\n{indent}({group}): Sequential(")?;
                self.write_nodes(f, &nodes[at..at + count], &inner, depth + 1)?;
                write!(f, "\n{indent})")?;
                at += count;
                continue;
            }
            if node.branches.is_empty() {
                write!(f, "\n{indent}({name}): {}", describe(&*node.layer))?;
            } else {
                write!(f, "\n{indent}({name}): {}(", node.layer.kind())?;
                self.write_branches(f, node, depth)?;
                write!(f, "\n{indent})")?;
            }
            write_sizes(f, node)?;
            at += 1;
        }
        Ok(())
    }

    fn write_branches(
        &self,
        f: &mut fmt::Formatter<'_>,
        node: &Node<T>,
        depth: usize,
    ) -> fmt::Result {
        let indent = "  ".repeat(depth + 1);
        for (number, layers) in node.branches.iter().enumerate() {
            let all: Vec<&Node<T>> = layers.clone().filter_map(|index| self.layer(index)).collect();
            let nodes = outermost(&all);
            let own = format!("{}.", node.name);
            let unnamed = format!("{own}{number}.");
            let named = nodes.iter().any(|node| !node.name.starts_with(&unnamed));
            // The branch's number is not part of the names if its layers are named after the block
            // alone.
            let number = if named { String::new() } else { number.to_string() };
            write!(f, "\n{indent}({number}): Sequential(")?;
            self.write_nodes(f, &nodes, if named { &own } else { &unnamed }, depth + 2)?;
            let end = if nodes.is_empty() { String::new() } else { format!("\n{indent}") };
            write!(f, "{end})")?;
        }
        Ok(())
    }
}

/// The nodes that are not inside a branch of another one of these. A node comes before those in its
/// branches.
fn outermost<'a, T: Scalar>(nodes: &[&'a Node<T>]) -> Vec<&'a Node<T>> {
    let mut inside = 0;
    nodes
        .iter()
        .copied()
        .filter(|node| {
            let outside = node.index >= inside;
            if outside {
                inside = node.branches.last().map_or(0, |last| last.end);
            }
            outside
        })
        .collect()
}

fn write_sizes<T: Scalar>(f: &mut fmt::Formatter<'_>, node: &Node<T>) -> fmt::Result {
    if f.alternate() {
        write!(f, "  # {}", node.shape)?;
        match node.layer.parameters() {
            0 => {}
            count => write!(f, ", {count} parameters")?,
        }
    }
    Ok(())
}
