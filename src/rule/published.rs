//! The published rules by name.

use super::{
    AbsLrp, AlphaBeta, Decomposition, Epsilon, Flat, Gamma, GammaPlain, Lrp0, Norm, Pass, Relative,
    RelevanceRule, Sign, Site, WSquare, ZPlus, same_rule_in_f64,
};
use crate::error::Error;
use crate::scalar::Scalar;

/// The published rules with their usual parameters.
///
/// The table shows the share of output j's relevance that input i receives. A *contribution* is a
/// summand z_i w_ij of the output y_j.
///
/// | rule | share of input i | source |
/// |---|---|---|
/// | `Lrp0` | z_i w_ij / y_j: [`Lrp0::default`] | Bach et al. 2015 |
/// | `Epsilon` | z_i w_ij / (y_j + ε sgn y_j), ε = 1e-6: [`Epsilon::default`] | Bach et al. 2015 |
/// | `Gamma` | contributions with the sign of y_j are weighted by 1 + γ, γ = 0.25: [`Gamma::default`] | Montavon et al. 2019; Andéol et al. 2021 |
/// | `GammaPlain` | positive weights are multiplied by 1 + γ, γ = 0.25: [`GammaPlain::default`] | Montavon et al. 2019 |
/// | `ZPlus` | positive contributions, divided by their sum: [`ZPlus::default`] | Montavon et al. 2017 |
/// | `AlphaBeta` | positive contributions weighted by α, negative ones by -β, each divided by their sum, α = 2, β = 1: [`AlphaBeta::default`] | Bach et al. 2015 |
/// | `WSquare` | w_ij² divided by the sum of all w_ij²: [`WSquare::default`] | Montavon et al. 2017 |
/// | `Flat` | 1 / n for n inputs: [`Flat`] | Lapuschkin et al. 2017 |
/// | `Pass` | 1 if input and output have the same index, otherwise 0: [`Pass`] | |
/// | `Norm` | like `Epsilon`, for poolings and sums: [`Norm`] | |
/// | `AbsLrp` | z_i w_ij divided by the sum of \|z_i w_ij\|: [`AbsLrp::default`] | Vukadin et al. 2024 |
/// | `Sign` | sgn(z_i) w_ij / (y_j + ε sgn y_j): [`Sign::default`] | Gumpfer et al. 2023 |
/// | `Relative` | z_i w_ij / n for n inputs: [`Relative::default`] | fan-in instead of the total |
///
/// [`ZBox`](crate::ZBox) is not included because it has no usual parameters: its box depends on the
/// data.
///
/// ```
/// use relprop::{Epsilon, Linear, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, 2.0], None)?).build()?;
/// let x = dvector![3.0, 1.0];
/// let usual = model.explain(&x, Rule::Epsilon)?;
/// let coarse = model.explain(&x, Epsilon::new(5.0)?)?;
/// assert!((usual.shares() - dmatrix![0.6; 0.4]).amax() < 1e-6);
/// assert!((coarse.shares() - dmatrix![0.3; 0.2]).amax() < 1e-12);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// [`Lrp0::default`].
    Lrp0,
    /// [`Epsilon::default`].
    Epsilon,
    /// [`Gamma::default`].
    Gamma,
    /// [`GammaPlain::default`].
    GammaPlain,
    /// [`ZPlus::default`].
    ZPlus,
    /// [`AlphaBeta::default`].
    AlphaBeta,
    /// [`WSquare::default`].
    WSquare,
    /// [`Flat`].
    Flat,
    /// [`Pass`].
    Pass,
    /// [`Norm`].
    Norm,
    /// [`AbsLrp::default`].
    AbsLrp,
    /// [`Sign::default`].
    Sign,
    /// [`Relative::default`].
    Relative,
}

impl Rule {
    /// All rules.
    pub const ALL: [Self; 13] = [
        Self::Lrp0,
        Self::Epsilon,
        Self::Gamma,
        Self::GammaPlain,
        Self::ZPlus,
        Self::AlphaBeta,
        Self::WSquare,
        Self::Flat,
        Self::Pass,
        Self::Norm,
        Self::AbsLrp,
        Self::Sign,
        Self::Relative,
    ];

    // The default rules have different types and exist only during the call.
    fn with<T: Scalar, R>(self, f: impl FnOnce(&dyn RelevanceRule<T>) -> R) -> R {
        match self {
            Self::Lrp0 => f(&Lrp0::default()),
            Self::Epsilon => f(&Epsilon::default()),
            Self::Gamma => f(&Gamma::default()),
            Self::GammaPlain => f(&GammaPlain::default()),
            Self::ZPlus => f(&ZPlus::default()),
            Self::AlphaBeta => f(&AlphaBeta::default()),
            Self::WSquare => f(&WSquare::default()),
            Self::Flat => f(&Flat),
            Self::Pass => f(&Pass),
            Self::Norm => f(&Norm),
            Self::AbsLrp => f(&AbsLrp::default()),
            Self::Sign => f(&Sign::default()),
            Self::Relative => f(&Relative::default()),
        }
    }
}

impl<T: Scalar> RelevanceRule<T> for Rule {
    fn name(&self) -> String {
        self.with::<T, _>(|rule| rule.name())
    }

    fn decompose(&self, site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        self.with::<T, _>(|rule| rule.decompose(site))
    }

    same_rule_in_f64!();
}
