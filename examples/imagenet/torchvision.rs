//! Recognizes torchvision's VGG and ResNet families by the names and shapes of their weights.

use std::fmt::Write;

use relprop::io::StateDict;

/// The architecture in PyTorch's words, including the operations between the modules in
/// torchvision's `forward`. `None` if the weights belong to another family.
pub fn architecture(weights: &StateDict) -> Option<String> {
    let weights = Weights(weights);
    weights.resnet().or_else(|| weights.vgg())
}

struct Weights<'a>(&'a StateDict);

impl Weights<'_> {
    fn shape<const N: usize>(&self, module: &str) -> Option<[usize; N]> {
        self.0.shape(&format!("{module}.weight"))?.try_into().ok()
    }

    /// A convolution of `inputs` channels, with padding that keeps the size at stride 1.
    fn convolution(
        &self,
        module: &str,
        name: &str,
        stride: usize,
        inputs: usize,
    ) -> Option<String> {
        let [outputs, in_group, height, width] = self.shape(module)?;
        let (groups, above, beside) = (inputs / in_group.max(1), height / 2, width / 2);
        let bias = if self.0.shape(&format!("{module}.bias")).is_some() { "True" } else { "False" };
        Some(format!(
            "({name}): Conv2d({inputs}, {outputs}, kernel_size=({height}, {width}), \
             stride=({stride}, {stride}), \
             padding=({above}, {beside}), groups={groups}, bias={bias})"
        ))
    }

    fn linear(&self, module: &str, name: &str) -> Option<String> {
        let [outputs, inputs] = self.shape(module)?;
        Some(format!("({name}): Linear({inputs}, {outputs})"))
    }

    fn channels(&self, module: &str) -> Option<usize> {
        self.shape(module).map(|[outputs, _, _, _]| outputs)
    }

    /// A ResNet: a stem, four groups of blocks, the mean over all pixels and a dense layer. Each
    /// group except the first halves the height and width.
    fn resnet(&self) -> Option<String> {
        let stem = self.convolution("conv1", "conv1", 2, 3)?;
        let mut channels = self.channels("conv1")?;
        let mut text = format!(
            "Sequential({stem} (bn1): BatchNorm2d({channels}) (relu): ReLU() (maxpool): \
             MaxPool2d(3, 2, 1)"
        );
        for group in 1..=4 {
            write!(text, " (layer{group}): Sequential(").ok()?;
            let mut block = 0;
            while self.channels(&format!("layer{group}.{block}.conv1")).is_some() {
                let stride = if group > 1 && block == 0 { 2 } else { 1 };
                let (block_text, outputs) =
                    self.block(&format!("layer{group}.{block}"), stride, channels)?;
                write!(text, "({block}): {block_text} ").ok()?;
                channels = outputs;
                block += 1;
            }
            text.push(')');
        }
        write!(
            text,
            " (avgpool): AdaptiveAvgPool2d(1) (flatten): Flatten() {} (softmax): Softmax())",
            self.linear("fc", "fc")?
        )
        .ok()?;
        Some(text)
    }

    /// A residual block and its number of output channels. The block adds two or three convolutions
    /// to its input, or to a convolution of its input.
    fn block(&self, module: &str, stride: usize, inputs: usize) -> Option<(String, usize)> {
        let mut text = String::from("Sequential((): Residual((): Sequential(");
        let mut channels = inputs;
        // torchvision puts the stride on the first 3 x 3 convolution of a block.
        let striding = (1..=3).find(|index| {
            matches!(self.shape(&format!("{module}.conv{index}")), Some([_, _, 3, 3]))
        })?;
        for index in 1..=3 {
            let name = format!("conv{index}");
            let Some(outputs) = self.channels(&format!("{module}.{name}")) else { break };
            let convolution = self.convolution(
                &format!("{module}.{name}"),
                &name,
                if index == striding { stride } else { 1 },
                channels,
            )?;
            let relu = if index == 1 { "" } else { "(relu): ReLU() " };
            write!(text, "{relu}{convolution} (bn{index}): BatchNorm2d({outputs}) ").ok()?;
            channels = outputs;
        }
        text.push_str(") (): Sequential(");
        if let Some(outputs) = self.channels(&format!("{module}.downsample.0")) {
            let convolution =
                self.convolution(&format!("{module}.downsample.0"), "0", stride, inputs)?;
            write!(text, "(downsample): Sequential({convolution} (1): BatchNorm2d({outputs}))")
                .ok()?;
        }
        text.push_str(")) (relu2): ReLU())");
        Some((text, channels))
    }

    /// A VGG: 3 x 3 convolutions and pooling, then three dense layers. Gaps in the indices of
    /// `features` show where a batch norm or a pooling lies between two convolutions.
    fn vgg(&self) -> Option<String> {
        let name = |index: usize| format!("features.{index}");
        let mut convolutions = (0..100)
            .filter(|&index| matches!(self.shape(&name(index)), Some([_, _, 3, 3])))
            .peekable();
        let mut text = String::from("Sequential((features): Sequential(");
        let mut channels = 3;
        while let Some(index) = convolutions.next() {
            let outputs = self.channels(&name(index))?;
            let convolution = self.convolution(&name(index), &index.to_string(), 1, channels)?;
            let norm = matches!(self.shape(&name(index + 1)), Some([_]));
            let relu = index + 1 + usize::from(norm);
            text.push_str(&convolution);
            if norm {
                write!(text, " ({}): BatchNorm2d({outputs})", index + 1).ok()?;
            }
            write!(text, " ({relu}): ReLU() ").ok()?;
            if convolutions.peek() != Some(&(relu + 1)) {
                write!(text, "({}): MaxPool2d(2) ", relu + 1).ok()?;
            }
            channels = outputs;
        }
        text.push_str(
            ") (avgpool): AdaptiveAvgPool2d(7) (flatten): Flatten() (classifier): Sequential(",
        );
        let dense =
            [0, 3, 6].map(|index| self.linear(&format!("classifier.{index}"), &index.to_string()));
        let [first, second, third] = dense;
        let dropped = |index: usize| format!("({index}): ReLU() ({}): Dropout(0.5)", index + 1);
        write!(
            text,
            "{} {} {} {} {}) (softmax): Softmax())",
            first?,
            dropped(1),
            second?,
            dropped(4),
            third?
        )
        .ok()?;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use relprop::nalgebra::DVector;

    use super::*;

    /// The state dict of a safetensors file with these names and shapes, where all values are 1.
    fn weights(shapes: &[(String, Vec<usize>)]) -> StateDict {
        let (mut header, mut data) = (Vec::new(), Vec::new());
        for (name, shape) in shapes {
            let from = data.len();
            data.extend((0..shape.iter().product()).flat_map(|_| 1.0_f32.to_le_bytes()));
            header.push(format!(
                r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{from},{}]}}"#,
                data.len()
            ));
        }
        let header = format!("{{{}}}", header.join(","));
        let length = u64::try_from(header.len()).unwrap().to_le_bytes();
        StateDict::from_safetensors(&[&length[..], header.as_bytes(), &data].concat()).unwrap()
    }

    fn norm(name: &str, channels: usize) -> [(String, Vec<usize>); 4] {
        ["weight", "bias", "running_mean", "running_var"]
            .map(|part| (format!("{name}.{part}"), vec![channels]))
    }

    /// One block per group: two 3 x 3 convolutions, or three with a grouped one in the middle.
    fn resnet(bottleneck: bool) -> Vec<(String, Vec<usize>)> {
        let mut all = vec![("conv1.weight".to_owned(), vec![2, 3, 7, 7])];
        all.extend(norm("bn1", 2));
        let mut inputs = 2;
        for group in 1..=4 {
            let (module, wide) = (format!("layer{group}.0"), 2 * group);
            let outputs = if bottleneck { 2 * wide } else { wide };
            let shapes = if bottleneck {
                vec![vec![wide, inputs, 1, 1], vec![wide, 2, 3, 3], vec![outputs, wide, 1, 1]]
            } else {
                vec![vec![outputs, inputs, 3, 3], vec![outputs, outputs, 3, 3]]
            };
            for (index, shape) in shapes.into_iter().enumerate() {
                all.extend(norm(&format!("{module}.bn{}", index + 1), shape[0]));
                all.push((format!("{module}.conv{}.weight", index + 1), shape));
            }
            if group > 1 || bottleneck {
                all.push((format!("{module}.downsample.0.weight"), vec![outputs, inputs, 1, 1]));
                all.extend(norm(&format!("{module}.downsample.1"), outputs));
            }
            inputs = outputs;
        }
        all.extend([("fc.weight".to_owned(), vec![5, inputs]), ("fc.bias".to_owned(), vec![5])]);
        all
    }

    #[test]
    fn residual_networks_are_built_from_their_weights() {
        for bottleneck in [false, true] {
            let weights = weights(&resnet(bottleneck));
            let text = architecture(&weights).unwrap();
            assert_eq!(text.matches("groups=2").count(), usize::from(bottleneck), "{text}");
            let model = weights.model_of::<f32>(&text, Some([3, 64, 64].into())).unwrap();
            assert_eq!(model.outputs(), 5);
            assert!(
                model
                    .forward(&DVector::from_element(model.inputs(), 0.1))
                    .unwrap()
                    .iter()
                    .all(|v| v.is_finite())
            );
        }
    }

    #[test]
    fn poolings_and_norms_are_told_by_the_indices() {
        let mut all = Vec::new();
        for (index, shape) in [(0, [2, 3, 3, 3]), (3, [2, 2, 3, 3]), (7, [4, 2, 3, 3])] {
            all.extend([
                (format!("features.{index}.weight"), shape.to_vec()),
                (format!("features.{index}.bias"), vec![shape[0]]),
            ]);
            all.extend(norm(&format!("features.{}", index + 1), shape[0]));
        }
        for (index, shape) in [(0, [6, 196]), (3, [6, 6]), (6, [5, 6])] {
            all.extend([
                (format!("classifier.{index}.weight"), shape.to_vec()),
                (format!("classifier.{index}.bias"), vec![shape[0]]),
            ]);
        }
        let weights = weights(&all);
        let text = architecture(&weights).unwrap();
        assert_eq!(text.matches("MaxPool2d").count(), 2);
        assert!(
            text.contains("(6): MaxPool2d(2) (7): Conv2d") && text.contains("(10): MaxPool2d(2) )"),
            "{text}"
        );
        assert_eq!(weights.model_of::<f32>(&text, Some([3, 28, 28].into())).unwrap().outputs(), 5);
    }

    #[test]
    fn other_networks_are_not_mistaken_for_these() {
        assert_eq!(architecture(&weights(&[("0.weight".to_owned(), vec![2, 3])])), None);
        assert_eq!(
            architecture(&weights(&[
                ("conv1.weight".to_owned(), vec![2, 3, 5, 5]),
                ("fc.weight".to_owned(), vec![5])
            ])),
            None
        );
    }
}
