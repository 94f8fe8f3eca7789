//! Composites: different rules for different layers.
//!
//! Deep networks are best explained with several rules: a robust one where features are coarse, an
//! exact one near the output, and one for the pixels at the first layer (Montavon et al. 2019;
//! Kohlbrenner et al. 2020).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::error::Error;
use crate::layer::{Family, LayerId};
use crate::nearest::did_you_mean;
use crate::rule::{
    AlphaBeta, Choice, Decomposition, Epsilon, Flat, Gamma, RelevanceRule, Site, ZBox, ZPlus,
    rule_at, usual,
};
use crate::scalar::Scalar;

/// A rule for each layer, selected by family, kind, position or name. A composite is itself a rule.
///
/// If several settings match a layer, the last one wins. If a setting matches no layer, creating
/// the explainer fails with [`Error::UnmatchedSetting`], which suggests a similar name. The
/// settings of presets are exempt.
///
/// ```
/// use relprop::{Composite, Epsilon, Gamma, Linear, Relu, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder()
///     .layer(Linear::new(dmatrix![1.0, -1.0; 0.5, 2.0; 0.0, 1.0], dvector![0.0, 0.1, -0.2])?)
///     .layer(Relu)
///     .named("head", Linear::new(dmatrix![1.0, 1.0, -1.0], dvector![0.05])?)
///     .build()?;
/// let composite = Composite::new(Gamma::new(0.1)?)
///     .first(Rule::WSquare)
///     .layer("head", Epsilon::new(0.01)?);
/// let explainer = model.explainer(composite)?;
/// println!("{explainer}"); // which rule each layer gets
/// let rules: Vec<_> = explainer.rules().collect();
/// assert_eq!(rules, [("0", "WSquare"), ("head", "Epsilon(0.01)")]);
/// assert_eq!(explainer.explain(&dvector![1.0, 2.0])?.shares().shape(), (2, 1));
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Clone)]
pub struct Composite<T: Scalar> {
    name: Option<String>,
    settings: Vec<Setting<T>>,
}

#[derive(Clone)]
struct Setting<T: Scalar> {
    place: Place,
    rule: Arc<dyn RelevanceRule<T>>,
    /// Whether the setting must match some layer. The settings of presets need not, because not
    /// every model has convolutions.
    wanted: bool,
}

#[derive(Debug, Clone)]
enum Place {
    Any,
    Family(Family),
    Kind(String),
    Layer(usize),
    Range(Range<usize>),
    Name(String),
    First,
    Last,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("others"),
            Self::Kind(kind) => f.write_str(kind),
            Self::Family(family) => write!(f, "{family}"),
            Self::Layer(layer) => write!(f, "layer {layer}"),
            Self::Range(range) => write!(f, "layers {range:?}"),
            Self::Name(name) => write!(f, "layer {name}"),
            Self::First => f.write_str("first"),
            Self::Last => f.write_str("last"),
        }
    }
}

impl Place {
    fn is(&self, site: &Site<'_>) -> bool {
        match self {
            Self::Any => site.family.is_learned(),
            Self::Family(family) => *family == site.family,
            Self::Kind(kind) => kind == site.kind,
            Self::Layer(layer) => *layer == site.layer,
            Self::Range(range) => range.contains(&site.layer),
            Self::Name(name) => name == site.name,
            Self::First => site.family.is_learned() && site.is_first,
            Self::Last => site.family.is_learned() && site.linear_index + 1 == site.linear_count,
        }
    }

    /// The error for a setting that matches none of these layers.
    fn unmatched(&self, rule: String, sites: &[Site<'_>]) -> Error {
        let names = sites.iter().map(|site| site.name);
        let (setting, nearest) = match self {
            Self::Kind(kind) => (
                format!("Composite::kind({kind:?}, ..)"),
                did_you_mean(kind, sites.iter().map(|site| site.kind)),
            ),
            Self::Name(name) => {
                (format!("Composite::layer({name:?}, ..)"), did_you_mean(name, names))
            }
            Self::Family(family) => (format!("Composite::family({family:?}, ..)"), String::new()),
            Self::Layer(layer) => (format!("Composite::layer({layer}, ..)"), String::new()),
            Self::Range(range) => (format!("Composite::range({range:?}, ..)"), String::new()),
            Self::Any => ("Composite::new(..)".to_owned(), String::new()),
            Self::First => ("Composite::first(..)".to_owned(), String::new()),
            Self::Last => ("Composite::last(..)".to_owned(), String::new()),
        };
        Error::UnmatchedSetting { setting, rule, nearest, layers: list_sites(sites) }
    }
}

/// Lists the layers to which rules apply, for an error message.
fn list_sites(sites: &[Site<'_>]) -> String {
    const LISTED: usize = 12;
    let one = |site: &Site<'_>| match site.layer.to_string() {
        // The name of a layer without one is its position, which usually is its index.
        index if index == site.name => format!("{index} ({})", site.kind),
        index => format!("{index} '{}' ({})", site.name, site.kind),
    };
    let mut listed: Vec<String> = sites.iter().take(LISTED).map(one).collect();
    if sites.len() > LISTED {
        listed.push(format!("and {} more", sites.len() - LISTED));
    }
    if listed.is_empty() {
        "the model has no layers to which rules apply".to_owned()
    } else {
        format!("rules apply to these layers: {}", listed.join(", "))
    }
}

impl<T: Scalar> Composite<T> {
    /// Creates a composite with this rule for every layer with learned weights. Later settings take
    /// precedence.
    #[must_use]
    pub fn new(rule: impl RelevanceRule<T> + 'static) -> Self {
        Self { name: None, settings: Vec::new() }.set(Place::Any, Arc::new(rule), false)
    }

    fn with(self, place: Place, rule: impl RelevanceRule<T> + 'static) -> Self {
        self.set(place, Arc::new(rule), true)
    }

    fn set(mut self, place: Place, rule: Arc<dyn RelevanceRule<T>>, wanted: bool) -> Self {
        // A modified preset must not keep the preset's name.
        self.name = None;
        self.settings.push(Setting { place, rule, wanted });
        self
    }

    /// Sets the rule for layers of a kind, such as `"Linear"`.
    #[must_use]
    pub fn kind(self, kind: &str, rule: impl RelevanceRule<T> + 'static) -> Self {
        self.with(Place::Kind(kind.to_owned()), rule)
    }

    /// Sets the rule for a family of layers, such as all convolutions or all sums.
    #[must_use]
    pub fn family(self, family: Family, rule: impl RelevanceRule<T> + 'static) -> Self {
        self.with(Place::Family(family), rule)
    }

    /// Sets the rule for one layer, by its name or its index.
    ///
    /// A layer has the name that it was given, or the name from the file that the model was read
    /// from. A layer without a name is named by its position in the builder. Indices are counted
    /// from 0 and include activations and the layers inside branches.
    #[must_use]
    pub fn layer<'a>(
        self,
        layer: impl Into<LayerId<'a>>,
        rule: impl RelevanceRule<T> + 'static,
    ) -> Self {
        let place = match layer.into() {
            LayerId::Index(index) => Place::Layer(index),
            LayerId::Name(name) => Place::Name(name.to_owned()),
        };
        self.with(place, rule)
    }

    /// Sets the rule for the layers with these indices.
    #[must_use]
    pub fn range(self, indices: Range<usize>, rule: impl RelevanceRule<T> + 'static) -> Self {
        self.with(Place::Range(indices), rule)
    }

    /// Sets the rule for the first linear layer, which receives the model's inputs. If several
    /// layers receive them, as in a model with several inputs, it is set for all of these.
    #[must_use]
    pub fn first(self, rule: impl RelevanceRule<T> + 'static) -> Self {
        self.with(Place::First, rule)
    }

    /// Sets the rule for the last linear layer.
    #[must_use]
    pub fn last(self, rule: impl RelevanceRule<T> + 'static) -> Self {
        self.with(Place::Last, rule)
    }

    fn by_convolutions(rule: impl RelevanceRule<T> + 'static) -> Self {
        // A preset is valid for any model, so its settings need not match a layer.
        Self::new(Epsilon::default()).set(Place::Family(Family::Convolution), Arc::new(rule), false)
    }

    fn preset_first(self, rule: impl RelevanceRule<T> + 'static) -> Self {
        self.set(Place::First, Arc::new(rule), false)
    }

    fn called(self, name: impl Into<String>) -> Self {
        // This comes last, because adding a setting removes the name.
        Self { name: Some(name.into()), ..self }
    }

    /// [`ZPlus`] for convolutions, [`Epsilon`] for dense layers, and [`Norm`](crate::Norm) for
    /// poolings and sums.
    #[must_use]
    pub fn epsilon_plus() -> Self {
        Self::by_convolutions(ZPlus::default()).called("EpsilonPlus")
    }

    /// [`epsilon_plus`](Self::epsilon_plus) with [`Flat`] for the first layer.
    #[must_use]
    pub fn epsilon_plus_flat() -> Self {
        Self::epsilon_plus().preset_first(Flat).called("EpsilonPlusFlat")
    }

    /// [`AlphaBeta`] (2, 1) for convolutions, [`Epsilon`] for dense layers, and
    /// [`Norm`](crate::Norm) for poolings and sums.
    #[must_use]
    pub fn epsilon_alpha2_beta1() -> Self {
        Self::by_convolutions(AlphaBeta::default()).called("EpsilonAlpha2Beta1")
    }

    /// [`epsilon_alpha2_beta1`](Self::epsilon_alpha2_beta1) with [`Flat`] for the first layer.
    #[must_use]
    pub fn epsilon_alpha2_beta1_flat() -> Self {
        Self::epsilon_alpha2_beta1().preset_first(Flat).called("EpsilonAlpha2Beta1Flat")
    }

    /// [`Gamma`] (0.25) for convolutions, [`Epsilon`] for dense layers, [`Norm`](crate::Norm) for
    /// poolings and sums, and [`ZBox`] with the bounds of the inputs for the first layer.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] unless both bounds are finite and low <= high.
    pub fn epsilon_gamma_box(low: f64, high: f64) -> Result<Self, Error> {
        let composite = Self::by_convolutions(Gamma::default()).preset_first(ZBox::new(low, high)?);
        Ok(composite.called(format!("EpsilonGammaBox({low:?}, {high:?})")))
    }
}

impl<T: Scalar> RelevanceRule<T> for Composite<T> {
    /// The preset's name, or a list of all settings, such as
    /// `Composite(Epsilon(1e-6), first: Flat)`.
    fn name(&self) -> String {
        let setting = |Setting { place, rule, .. }: &Setting<T>| match place {
            Place::Any => rule.name(),
            place => format!("{place}: {}", rule.name()),
        };
        let all = || self.settings.iter().map(setting).collect::<Vec<_>>().join(", ");
        self.name.clone().unwrap_or_else(|| format!("Composite({})", all()))
    }

    fn at(&self, site: &Site<'_>) -> Choice<'_, T> {
        // Later settings take precedence.
        let setting = self.settings.iter().rev().find(|setting| setting.place.is(site));
        let Some(Setting { rule, .. }) = setting else { return Choice::Other(usual(site.family)) };
        match rule.at(site) {
            // The setting decides, even where the rule itself is not used otherwise.
            Choice::This | Choice::Usual => Choice::Other(&**rule),
            other @ Choice::Other(_) => other,
        }
    }

    /// Checks that every required setting matches some layer, and lets each rule check the layers
    /// that its setting matches.
    fn check_sites(&self, sites: &[Site<'_>]) -> Result<(), Error> {
        for Setting { place, rule, wanted } in &self.settings {
            let fitting: Vec<Site<'_>> =
                sites.iter().filter(|site| place.is(site)).cloned().collect();
            if fitting.is_empty() {
                if *wanted {
                    return Err(place.unmatched(rule.name(), sites));
                }
                continue;
            }
            rule.check_sites(&fitting)?;
        }
        Ok(())
    }

    fn decompose(&self, site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        rule_at(self, site).decompose(site)
    }

    fn to_f64(&self) -> Option<Box<dyn RelevanceRule<f64>>> {
        let converted = |Setting { place, rule, wanted }: &Setting<T>| {
            let (place, rule) = (place.clone(), rule.to_f64()?.into());
            Some(Setting { place, rule, wanted: *wanted })
        };
        let settings = self.settings.iter().map(converted).collect::<Option<_>>()?;
        Some(Box::new(Composite { name: self.name.clone(), settings }))
    }
}

impl<T: Scalar> fmt::Debug for Composite<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = self.settings.iter().map(|setting| (&setting.place, setting.rule.name()));
        f.debug_map().entries(settings).finish()
    }
}
