//! Rules: the settings that they accept, and which rule a composite uses for each layer.

use relprop::nalgebra::{self, dmatrix, dvector};
use relprop::rule::{Decomposition, Divisor, Gate, Group, Part, Site, Stabilizer, Transform};
use relprop::{
    AbsLrp, AlphaBeta, AvgPool2d, BiasMode, Cause, Composite, Conv2d, Epsilon, Error, Flat,
    Flatten, Gamma, GammaPlain, Identity, Linear, Lrp0, Norm, Pass, Relative, RelevanceRule,
    Residual, Sequential, Sign, WSquare, ZBox, ZPlus,
};

#[test]
fn rules_are_send_sync_and_clone() {
    fn check<R: RelevanceRule<f64> + Send + Sync + Clone + 'static>() {}
    check::<AbsLrp>();
    check::<AlphaBeta>();
    check::<Epsilon>();
    check::<Flat>();
    check::<Gamma>();
    check::<Lrp0>();
    check::<Norm>();
    check::<Pass>();
    check::<Relative>();
    check::<Sign>();
    check::<WSquare>();
    check::<ZBox>();
    check::<ZPlus>();
}

#[test]
fn rejects_settings_that_do_not_conserve() {
    for (alpha, beta) in [(0.5, -0.5), (2.0, 0.0), (2.0, f64::NAN), (f64::INFINITY, f64::INFINITY)]
    {
        assert!(matches!(AlphaBeta::new(alpha, beta), Err(Error::InvalidParameter { .. })));
    }
    assert!(AlphaBeta::new(1.0, 0.0).is_ok());
}

#[test]
fn rejects_invalid_epsilons() {
    for bad in [0.0, -1e-6, f64::NAN, f64::INFINITY] {
        assert!(matches!(Epsilon::new(bad), Err(Error::InvalidParameter { .. })));
        assert!(matches!(Epsilon::relative_to_rms(bad), Err(Error::InvalidParameter { .. })));
    }
}

#[test]
fn rejects_invalid_gammas() {
    for bad in [-1e-6, f64::NAN, f64::INFINITY] {
        assert!(matches!(Gamma::new(bad), Err(Error::InvalidParameter { .. })));
        assert!(matches!(GammaPlain::new(bad), Err(Error::InvalidParameter { .. })));
    }
    assert!(Gamma::new(0.0).is_ok());
}

#[test]
fn refuses_to_absorb() {
    assert!(matches!(Relative::new(BiasMode::Absorb), Err(Error::InvalidParameter { .. })));
    assert!(Relative::new(BiasMode::Distribute).is_ok());
}

#[test]
fn rejects_invalid_boxes() {
    assert!(ZBox::new(1.0, 0.0).is_err());
    assert!(ZBox::new(f64::NAN, 0.0).is_err());
    assert!(ZBox::per_input(vec![0.0], vec![1.0, 1.0]).is_err());
    assert!(ZBox::new(0.0, 0.0).is_ok());
}

/// The names of the rules of the layers that distribute relevance, in order.
fn names(model: &Sequential<f64>, composite: Composite<f64>) -> Vec<String> {
    let explainer = model.explainer(composite).unwrap();
    let mut rules: Vec<(&str, &str)> = explainer.rules().collect();
    rules.sort_by_key(|(name, _)| model.names().iter().position(|other| other == name));
    rules.into_iter().map(|(_, rule)| rule.to_owned()).collect()
}

fn convolution() -> Conv2d<f64> {
    Conv2d::new([1, 1, 1, 1], vec![1.0], None).unwrap()
}

fn dense() -> Linear<f64> {
    Linear::new(dmatrix![1.0], None).unwrap()
}

#[test]
fn the_last_setting_that_fits_holds() {
    let composite = || {
        Composite::<f64>::new(Epsilon::default())
            .kind("Conv2d", ZPlus::default())
            .range(1..3, Gamma::default())
            .layer("head", Flat)
            .layer(2, Norm)
            .first(AlphaBeta::default())
    };
    let (alpha, gamma) = ("AlphaBeta(2.0, 1.0)", "Gamma(0.25)");
    let start = || Sequential::builder().input([1, 1, 1]).layer(convolution()).layer(convolution());

    let model = start().layer(convolution()).layer(convolution()).layer(Flatten);
    let model = model.named("head", dense()).layer(dense()).build().unwrap();
    let expected = [alpha, gamma, "Norm", "ZPlus", "Flat", "Epsilon(1e-6)"];
    assert_eq!(names(&model, composite()), expected);
    let last = [&expected[..5], &["Flat"]].concat();
    assert_eq!(names(&model, composite().last(Flat)), last);

    // The setting for the head's position comes after the one for its name.
    let model = start().named("head", convolution()).build().unwrap();
    assert_eq!(names(&model, composite()), [alpha, gamma, "Norm"]);
}

#[test]
fn presets_are_those_of_the_literature() {
    let inner = || Sequential::builder().layer(Identity);
    let model = Sequential::builder()
        .input([1, 1, 1])
        .layer(convolution())
        .layer(convolution())
        .layer(AvgPool2d::new(1))
        .layer(Residual::new([inner(), Sequential::builder()]).unwrap())
        .layer(Flatten)
        .layer(dense())
        .build()
        .unwrap();
    let names = |composite| names(&model, composite);
    assert_eq!(
        names(Composite::epsilon_plus()),
        ["ZPlus", "ZPlus", "Norm", "Norm", "Epsilon(1e-6)"]
    );
    assert_eq!(
        names(Composite::epsilon_plus_flat()),
        ["Flat", "ZPlus", "Norm", "Norm", "Epsilon(1e-6)"]
    );
    let alpha = "AlphaBeta(2.0, 1.0)";
    assert_eq!(
        names(Composite::epsilon_alpha2_beta1()),
        [alpha, alpha, "Norm", "Norm", "Epsilon(1e-6)"]
    );
    assert_eq!(
        names(Composite::epsilon_alpha2_beta1_flat()),
        ["Flat", alpha, "Norm", "Norm", "Epsilon(1e-6)"]
    );
    let gamma = Composite::epsilon_gamma_box(-1.0, 1.0).unwrap();
    assert_eq!(names(gamma), ["ZBox(-1.0, 1.0)", "Gamma(0.25)", "Norm", "Norm", "Epsilon(1e-6)"]);
    assert!(Composite::<f64>::epsilon_gamma_box(1.0, -1.0).is_err());
    assert_eq!(RelevanceRule::name(&Composite::<f64>::epsilon_plus_flat()), "EpsilonPlusFlat");
    let changed = Composite::<f64>::new(Epsilon::default())
        .first(Flat)
        .kind("Conv2d", Norm)
        .layer(3, Flat)
        .layer("head", Flat);
    let name =
        "Composite(Epsilon(1e-6), first: Flat, Conv2d: Norm, layer 3: Flat, layer head: Flat)";
    assert_eq!(RelevanceRule::name(&changed), name);
    assert!(
        RelevanceRule::name(&Composite::<f64>::epsilon_plus_flat().last(Flat))
            .ends_with("first: Flat, last: Flat)")
    );
}

/// Shares that do not sum to 1 leave a rest, for every divisor and behind every gate.
#[test]
fn the_ledger_closes_for_every_divisor_and_gate() {
    struct Any(Divisor<f64>, Gate, bool);
    impl RelevanceRule<f64> for Any {
        fn name(&self) -> String {
            "Any".to_owned()
        }
        fn decompose(&self, _site: &Site<'_>) -> Result<Decomposition<f64>, Error> {
            let part = || Part::new(Transform::Identity, Transform::Identity);
            let parts = vec![if self.2 { Part::same() } else { part() }];
            let group = Group::new(parts, self.0.clone()).where_output(self.1);
            Ok(group.with_bias(BiasMode::Ignore, Transform::Identity).into())
        }
    }
    let linear = || Linear::new(dmatrix![1.0, 2.0; -1.0, -2.0], dvector![0.1, -0.1]).unwrap();
    let model = Sequential::builder().layer(linear()).layer(linear()).build().unwrap();
    let stabilizer = Stabilizer::Absolute(1e-3);
    for divisor in [
        Divisor::One,
        Divisor::FanIn,
        Divisor::Total(stabilizer),
        Divisor::TotalOf(vec![Part::new(Transform::Positive, Transform::Positive)], stabilizer),
    ] {
        for gate in [Gate::Always, Gate::Positive, Gate::Negative] {
            for same in [false, true] {
                let rule = Any(divisor.clone(), gate, same);
                let explanation = model.explain(&dvector![1.0, 1.0], &rule).unwrap();
                for output in 0..2 {
                    let ledger = explanation.ledger(output).unwrap();
                    assert!(ledger.imbalance() < 1e-12, "{divisor:?} {gate:?} {same}: {ledger}");
                }
            }
        }
    }
    // z w / 1: the inputs of the last layer receive 3 times an output of 3, and the rest is -6.
    let one = Sequential::builder().layer(Linear::new(dmatrix![1.0, 2.0], None).unwrap());
    let rule = Any(Divisor::One, Gate::Always, false);
    let ledger =
        one.build().unwrap().explain(&dvector![1.0, 1.0], &rule).unwrap().ledger(0).unwrap();
    assert_eq!((ledger.inputs(), ledger.total(Cause::Rest)), (9.0, -6.0));
}
