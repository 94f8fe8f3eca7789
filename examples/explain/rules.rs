//! The rules by their names.

use relprop::{
    AlphaBeta, BiasMode, Composite, Epsilon, Error, Gamma, GammaPlain, Lrp0, Relative,
    RelevanceRule, Rule, WSquare, ZBox, ZPlus,
};

use crate::options::Options;
use crate::{Failure, usage};

type Boxed = Box<dyn RelevanceRule<f32>>;
/// What `--box` says.
type Bounds = (f64, f64);

/// A rule's name, and how it is made.
struct Named {
    name: &'static str,
    make: Make,
}

enum Make {
    Plain(fn() -> Boxed),
    /// With one of these uses of the bias, of which the first is the rule's own.
    Biased(&'static [BiasMode], fn(BiasMode) -> Result<Boxed, Error>),
    Bounded(fn(Bounds) -> Result<Boxed, Error>),
}

use BiasMode::{Absorb, Distribute, Ignore};
use Make::{Biased, Bounded, Plain};

const ANY: &[BiasMode] = &[Absorb, Ignore, Distribute];

const RULES: [Named; 18] = [
    Named {
        name: "epsilon",
        make: Biased(ANY, |bias| Ok(Box::new(Epsilon::default().with_bias(bias)))),
    },
    Named { name: "lrp0", make: Biased(ANY, |bias| Ok(Box::new(Lrp0::default().with_bias(bias)))) },
    Named {
        name: "gamma",
        make: Biased(ANY, |bias| Ok(Box::new(Gamma::default().with_bias(bias)))),
    },
    Named {
        name: "gamma-plain",
        make: Biased(ANY, |bias| Ok(Box::new(GammaPlain::default().with_bias(bias)))),
    },
    Named {
        name: "zplus",
        make: Biased(ANY, |bias| Ok(Box::new(ZPlus::default().with_bias(bias)))),
    },
    Named {
        name: "alpha-beta",
        make: Biased(ANY, |bias| Ok(Box::new(AlphaBeta::default().with_bias(bias)))),
    },
    Named {
        name: "wsquare",
        make: Biased(&[Ignore, Absorb], |bias| Ok(Box::new(WSquare::default().with_bias(bias)))),
    },
    Named {
        name: "relative",
        make: Biased(&[Ignore, Distribute], |bias| Ok(Box::new(Relative::new(bias)?))),
    },
    Named { name: "flat", make: Plain(|| Box::new(Rule::Flat)) },
    Named { name: "norm", make: Plain(|| Box::new(Rule::Norm)) },
    Named { name: "abs-lrp", make: Plain(|| Box::new(Rule::AbsLrp)) },
    // The box is that of the samples, and a sign in place of a size is for measured values.
    Named {
        name: "sign",
        make: Plain(|| Box::new(Composite::new(Rule::Epsilon).first(Rule::Sign))),
    },
    Named {
        name: "zbox",
        make: Bounded(|(low, high)| {
            Ok(Box::new(Composite::new(Rule::Epsilon).first(ZBox::new(low, high)?)))
        }),
    },
    Named { name: "epsilon-plus", make: Plain(|| Box::new(Composite::epsilon_plus())) },
    Named { name: "epsilon-plus-flat", make: Plain(|| Box::new(Composite::epsilon_plus_flat())) },
    Named {
        name: "epsilon-alpha2-beta1",
        make: Plain(|| Box::new(Composite::epsilon_alpha2_beta1())),
    },
    Named {
        name: "epsilon-alpha2-beta1-flat",
        make: Plain(|| Box::new(Composite::epsilon_alpha2_beta1_flat())),
    },
    Named {
        name: "epsilon-gamma-box",
        make: Bounded(|(low, high)| Ok(Box::new(Composite::epsilon_gamma_box(low, high)?))),
    },
];

/// The rule of the command line.
pub fn rule(options: &Options) -> Result<Boxed, Failure> {
    let name = options.rule.as_str();
    let Some(Named { make, .. }) = RULES.iter().find(|rule| rule.name == name) else {
        return Err(usage(format!(
            "--rule: there is no rule '{name}'; the rules are {}",
            names(|_| true)
        )));
    };
    if let (Some(_), Plain(_) | Biased(..)) = (options.bounds, make) {
        let bounded = names(|make| matches!(make, Bounded(_)));
        return Err(usage(format!("--box: the rule {name} takes no box, these do: {bounded}")));
    }
    if let (Some(_), Plain(_) | Bounded(_)) = (options.bias, make) {
        let biased = names(|make| matches!(make, Biased(..)));
        return Err(usage(format!(
            "--bias: the rule {name} has no choice of what becomes of biases, these have it: \
             {biased}"
        )));
    }
    match make {
        Plain(make) => Ok(make()),
        Biased(modes, make) => {
            let bias = options.bias.unwrap_or(modes[0]);
            if !modes.contains(&bias) {
                let listed =
                    modes.iter().map(|&mode| bias_name(mode)).collect::<Vec<_>>().join(" or ");
                return Err(usage(format!(
                    "--bias: the rule {name} takes {listed}, not {}",
                    bias_name(bias)
                )));
            }
            Ok(make(bias)?)
        }
        Bounded(make) => {
            let bounds = options.bounds.ok_or_else(|| {
                usage(format!(
                    "the rule {name} needs --box LOW,HIGH: the least and the largest \
                    value that an input may have"
                ))
            })?;
            make(bounds).map_err(|_| {
                usage(format!(
                    "--box: {} is not at most {}, or one is not finite",
                    bounds.0, bounds.1
                ))
            })
        }
    }
}

/// The names of some of the rules.
fn names(wanted: impl Fn(&Make) -> bool) -> String {
    RULES
        .iter()
        .filter(|rule| wanted(&rule.make))
        .map(|rule| rule.name)
        .collect::<Vec<_>>()
        .join(", ")
}

const BIASES: [(&str, BiasMode); 3] =
    [("ignored", Ignore), ("absorbed", Absorb), ("distributed", Distribute)];

pub fn bias(text: &str) -> Option<BiasMode> {
    BIASES.iter().find(|(name, _)| *name == text).map(|(_, mode)| *mode)
}

fn bias_name(mode: BiasMode) -> &'static str {
    BIASES.iter().find(|(_, named)| *named == mode).map_or("", |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rest: &str) -> Result<String, String> {
        let arguments = format!("model.onnx --input x.csv {rest}");
        let options = Options::parse(arguments.split(' ').map(Into::into))
            .map_err(|error| error.to_string())?
            .unwrap();
        rule(&options).map(|rule| rule.name()).map_err(|error| error.to_string())
    }

    #[test]
    fn each_rule_of_the_help_is_there_and_no_other() {
        let help = crate::options::help();
        for Named { name, make } in &RULES {
            let bounds = if matches!(make, Bounded(_)) { " --box 0,1" } else { "" };
            assert!(of(&format!("--rule {name}{bounds}")).is_ok(), "{name}");
            assert!(help.contains(name), "{name}");
        }
        assert!(
            of("--rule lrp")
                .unwrap_err()
                .contains("there is no rule 'lrp'; the rules are epsilon, lrp0")
        );
    }

    #[test]
    fn biases_are_for_rules_that_have_them() {
        assert_eq!(of("--rule epsilon --bias ignored").unwrap(), "Epsilon(1e-6, bias: Ignore)");
        assert_eq!(of("--rule epsilon --bias absorbed").unwrap(), of("--rule epsilon").unwrap());
        assert_eq!(of("--rule gamma --bias distributed").unwrap(), "Gamma(0.25, bias: Distribute)");
        assert!(of("--rule wsquare --bias absorbed").is_ok());
        for name in ["epsilon", "lrp0", "gamma", "gamma-plain", "zplus", "alpha-beta"] {
            let names: Vec<String> = ["ignored", "absorbed", "distributed"]
                .iter()
                .map(|bias| of(&format!("--rule {name} --bias {bias}")).unwrap())
                .collect();
            assert!(
                names[0] != names[1] && names[1] != names[2] && names[0] != names[2],
                "{names:?}"
            );
        }
        assert!(
            of("--rule relative --bias absorbed")
                .unwrap_err()
                .contains("takes ignored or distributed, not absorbed")
        );
        assert!(
            of("--rule wsquare --bias distributed")
                .unwrap_err()
                .contains("takes ignored or absorbed, not distributed")
        );
        let refused = of("--bias ignored").unwrap_err();
        assert!(
            refused.contains("the rule epsilon-plus has no choice")
                && refused.contains("these have it: epsilon, lrp0"),
            "{refused}"
        );
        assert!(of("--rule flat --bias ignored").is_err());
        assert!(of("--rule zbox --box 0,1 --bias ignored").is_err());
        assert!(
            of("--rule epsilon --bias none")
                .unwrap_err()
                .contains("'none' is not ignored, absorbed or distributed")
        );
    }

    #[test]
    fn boxes_are_for_rules_that_ask_for_them() {
        assert_eq!(
            of("--rule zbox --box -3,100").unwrap(),
            "Composite(Epsilon(1e-6), first: ZBox(-3.0, 100.0))"
        );
        assert!(of("--rule zbox").unwrap_err().contains("needs --box LOW,HIGH"));
        assert!(
            of("--rule epsilon --box 0,1")
                .unwrap_err()
                .contains("takes no box, these do: zbox, epsilon-gamma-box")
        );
        assert!(of("--rule zbox --box 1,0").unwrap_err().contains("1 is not at most 0"));
    }
}
