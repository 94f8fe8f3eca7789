//! The rules by their names, and the options that choose one.

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use relprop::{
    AlphaBeta, BiasMode, Composite, Epsilon, Error, Gamma, GammaPlain, Lrp0, Relative,
    RelevanceRule, Rule, WSquare, ZBox, ZPlus,
};

use crate::{Failure, usage};

/// The options that choose a rule.
#[derive(Debug, Args)]
#[command(next_help_heading = "Rule")]
pub struct RuleOptions {
    /// The rule that distributes relevance.
    ///
    /// For every layer: epsilon, lrp0, gamma, gamma-plain, zplus, alpha-beta, wsquare, flat, norm,
    /// relative, abs-lrp. For the first layer, with epsilon for the others: zbox, sign. Composites:
    /// epsilon-plus, epsilon-plus-flat, epsilon-alpha2-beta1, epsilon-alpha2-beta1-flat,
    /// epsilon-gamma-box.
    #[arg(long, default_value = "epsilon-plus", hide_possible_values = true)]
    pub rule: Named,

    /// The smallest and the largest value that an input can have. zbox and epsilon-gamma-box need it.
    #[arg(
        long = "box",
        value_name = "LOW,HIGH",
        value_parser = bounds,
        allow_hyphen_values = true
    )]
    pub bounds: Option<Bounds>,

    /// How the rule treats biases.
    ///
    /// For epsilon, lrp0, gamma, gamma-plain, zplus and alpha-beta (default: absorbed). wsquare
    /// accepts ignored, its default, or absorbed; relative accepts ignored, its default, or
    /// distributed.
    #[arg(long, value_name = "USE")]
    pub bias: Option<Bias>,
}

type Boxed = Box<dyn RelevanceRule<f32>>;
/// The value of `--box`.
type Bounds = (f64, f64);

/// The value of `--bias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bias {
    /// Biases absorb their share of the relevance. The ledger shows how much.
    Absorbed,
    /// The inputs get all of the relevance.
    Ignored,
    /// Each bias's share is spread evenly over the inputs that feed its output.
    Distributed,
}

impl Bias {
    fn mode(self) -> BiasMode {
        match self {
            Self::Absorbed => Absorb,
            Self::Ignored => Ignore,
            Self::Distributed => Distribute,
        }
    }
}

/// A rule's name, and how the rule is made.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    name: &'static str,
    make: Make,
}

impl ValueEnum for Named {
    fn value_variants<'a>() -> &'a [Self] {
        &RULES
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name))
    }
}

#[derive(Debug, Clone, Copy)]
enum Make {
    Plain(fn() -> Boxed),
    /// With one of these uses of the bias. The first is the rule's default.
    Biased(&'static [Bias], fn(BiasMode) -> Result<Boxed, Error>),
    Bounded(fn(Bounds) -> Result<Boxed, Error>),
}

use BiasMode::{Absorb, Distribute, Ignore};
use Make::{Biased, Bounded, Plain};

const ANY: &[Bias] = &[Bias::Absorbed, Bias::Ignored, Bias::Distributed];

static RULES: [Named; 18] = [
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
        make: Biased(&[Bias::Ignored, Bias::Absorbed], |bias| {
            Ok(Box::new(WSquare::default().with_bias(bias)))
        }),
    },
    Named {
        name: "relative",
        make: Biased(&[Bias::Ignored, Bias::Distributed], |bias| {
            Ok(Box::new(Relative::new(bias)?))
        }),
    },
    Named { name: "flat", make: Plain(|| Box::new(Rule::Flat)) },
    Named { name: "norm", make: Plain(|| Box::new(Rule::Norm)) },
    Named { name: "abs-lrp", make: Plain(|| Box::new(Rule::AbsLrp)) },
    // The box is the range of the samples, and a sign in place of a size makes sense for measured
    // values: both are for the first layer alone.
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

impl RuleOptions {
    /// The rule of the command line.
    pub fn rule(&self) -> Result<Boxed, Failure> {
        let Named { name, make } = self.rule;
        if self.bounds.is_some() && !matches!(make, Bounded(_)) {
            let bounded = names(|make| matches!(make, Bounded(_)));
            return Err(usage(format!("--box: the rule {name} takes no box, these do: {bounded}")));
        }
        if self.bias.is_some() && !matches!(make, Biased(..)) {
            let biased = names(|make| matches!(make, Biased(..)));
            return Err(usage(format!(
                "--bias: the rule {name} has no choice of how biases are treated, these have it: \
                 {biased}"
            )));
        }
        match make {
            Plain(make) => Ok(make()),
            Biased(choices, make) => self.biased(choices, make),
            Bounded(make) => self.bounded(make),
        }
    }

    fn biased(
        &self,
        choices: &[Bias],
        make: fn(BiasMode) -> Result<Boxed, Error>,
    ) -> Result<Boxed, Failure> {
        // The first choice is the rule's default, and no rule has an empty list.
        let bias = self.bias.unwrap_or(choices[0]);
        if !choices.contains(&bias) {
            let accepted = choices.iter().map(|&bias| bias_name(bias)).collect::<Vec<_>>();
            return Err(usage(format!(
                "--bias: the rule {} takes {}, not {}",
                self.rule.name,
                accepted.join(" or "),
                bias_name(bias)
            )));
        }
        Ok(make(bias.mode())?)
    }

    fn bounded(&self, make: fn(Bounds) -> Result<Boxed, Error>) -> Result<Boxed, Failure> {
        let bounds = self.bounds.ok_or_else(|| {
            usage(format!(
                "the rule {} needs --box LOW,HIGH: the smallest and the largest value that an input \
                 can have",
                self.rule.name
            ))
        })?;
        // The only error is about the box, and this text names the option.
        make(bounds).map_err(|_| {
            let (low, high) = bounds;
            usage(format!("--box: {low} is not at most {high}, or one is not finite"))
        })
    }
}

/// The names of some of the rules.
fn names(wanted: impl Fn(&Make) -> bool) -> String {
    let wanted = RULES.iter().filter(|rule| wanted(&rule.make));
    wanted.map(|rule| rule.name).collect::<Vec<_>>().join(", ")
}

fn bias_name(bias: Bias) -> String {
    bias.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn bounds(text: &str) -> Result<Bounds, &'static str> {
    let numbers = || {
        let (low, high) = text.split_once(',')?;
        Some((low.trim().parse().ok()?, high.trim().parse().ok()?))
    };
    numbers().ok_or("two numbers are expected, such as 0,1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    /// A command line that consists of these options.
    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: RuleOptions,
    }

    fn of(rest: &str) -> Result<String, String> {
        let line = Line::try_parse_from(format!("rule {rest}").split_whitespace())
            .map_err(|error| error.to_string())?;
        line.options.rule().map(|rule| rule.name()).map_err(|error| error.to_string())
    }

    #[test]
    fn each_rule_of_the_help_is_there_and_no_other() {
        let help = Line::command().render_long_help().to_string();
        for Named { name, make } in &RULES {
            let bounds = if matches!(make, Bounded(_)) { " --box 0,1" } else { "" };
            assert!(of(&format!("--rule {name}{bounds}")).is_ok(), "{name}");
            let words: Vec<&str> =
                help.split([' ', ',', '.', '\n']).filter(|word| word == name).collect();
            assert!(!words.is_empty(), "{name}");
        }
        let refused = of("--rule lrp").unwrap_err();
        assert!(
            refused.contains("invalid value 'lrp' for '--rule <RULE>'")
                && refused.contains("[possible values: epsilon, lrp0")
                && refused.contains("a similar value exists: 'lrp0'"),
            "{refused}"
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
        let refused = of("--rule epsilon --bias none").unwrap_err();
        assert!(
            refused.contains("invalid value 'none' for '--bias <USE>'")
                && refused.contains("[possible values: absorbed, ignored, distributed]"),
            "{refused}"
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
