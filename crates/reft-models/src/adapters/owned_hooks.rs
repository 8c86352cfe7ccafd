use std::rc::Rc;

use self_cell::self_cell;
use tch::Tensor;

use crate::{Adapter, Cut, HookPoint, Hooks, Layout, LowRank, Mode, Result, Span, TokenEdit};

type BoxedHooks<'a> = Box<dyn Hooks + 'a>;

self_cell!(
    /// The hooks of a shared adapter; they keep the adapter alive.
    pub(crate) struct OwnedHooks {
        owner: Rc<dyn Adapter>,
        #[covariant]
        dependent: BoxedHooks,
    }
);

impl OwnedHooks {
    /// The hooks for one forward over a batch.
    ///
    /// # Errors
    /// Errors of the adapter.
    pub(crate) fn of(adapter: &Rc<dyn Adapter>, layout: &Layout, mode: Mode) -> Result<Self> {
        Self::try_new(Rc::clone(adapter), |adapter| adapter.hooks(layout, mode))
    }

    /// Calls a function with the adapter's own hooks.
    fn with<T>(&mut self, act: impl FnOnce(&mut dyn Hooks) -> T) -> T {
        self.with_dependent_mut(|_, hooks| act(&mut **hooks))
    }
}

/// Forwards every function to the adapter's hooks, including those with a default in the trait.
impl Hooks for OwnedHooks {
    fn visit(&mut self, point: HookPoint, h: Tensor, span: &Span) -> Result<Tensor> {
        self.with(|hooks| hooks.visit(point, h, span))
    }

    fn touches(&self, point: HookPoint, span: &Span) -> bool {
        self.borrow_dependent().touches(point, span)
    }

    fn low_rank(&self, point: HookPoint, span: &Span) -> Option<LowRank<'_>> {
        self.borrow_dependent().low_rank(point, span)
    }

    fn token_edits(&self, point: HookPoint, span: &Span) -> Option<Vec<TokenEdit<'_>>> {
        self.borrow_dependent().token_edits(point, span)
    }

    fn prefix_length(&self) -> usize {
        self.borrow_dependent().prefix_length()
    }

    fn prefix(&mut self, layer: usize, span: &Span) -> Option<(Tensor, Tensor)> {
        self.with(|hooks| hooks.prefix(layer, span))
    }

    fn wants_attention(&self, layer: usize) -> bool {
        self.borrow_dependent().wants_attention(layer)
    }

    fn see_attention(&mut self, layer: usize, weights: Tensor) {
        self.with(|hooks| hooks.see_attention(layer, weights));
    }

    fn keep_rows(&mut self, rows: &[usize]) {
        self.with(|hooks| hooks.keep_rows(rows));
    }

    fn cut(&mut self) -> Vec<Cut> {
        self.with(|hooks| hooks.cut())
    }
}

#[cfg(test)]
mod tests {
    /// The names of the functions between two lines of a source.
    fn functions<'a>(source: &'a str, begin: &str) -> Vec<&'a str> {
        let lines =
            source.lines().skip_while(|line| *line != begin).take_while(|line| *line != "}");
        let name = |line: &'a str| line.strip_prefix("    fn ")?.split_once('(');
        lines.filter_map(name).map(|(name, _)| name).collect()
    }

    /// A trait function that is not forwarded would silently be the default, which changes nothing.
    #[test]
    fn every_function_of_hooks_is_handed_on() {
        let of_trait = functions(include_str!("../model/hooks.rs"), "pub trait Hooks {");
        let own = functions(include_str!("owned_hooks.rs"), "impl Hooks for OwnedHooks {");
        assert!(of_trait.len() >= 8, "{of_trait:?}");
        assert_eq!(own, of_trait);
        let borrowed = functions(
            include_str!("../model/hooks.rs"),
            "impl<T: Hooks + ?Sized> Hooks for &mut T {",
        );
        assert_eq!(borrowed, of_trait);
    }
}
