//! Decides what has a span, before anything is allocated for it.

use super::propagation::Traceparent;
use crate::config::SamplerKind;

/// The number of values that a trace's id can have in the bits by which a share is taken. The library uses the same bits, so
/// that all processes with the same share take the same traces.
const VALUES: u64 = 1 << 63;

/// The sampler that the settings choose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampler {
    follows_senders: bool,
    /// A value below this is taken.
    bound: u64,
}

impl Sampler {
    pub(super) fn new(kind: SamplerKind, ratio: f64) -> Self {
        use SamplerKind::{
            AlwaysOff, AlwaysOn, ParentBasedAlwaysOff, ParentBasedAlwaysOn,
            ParentBasedTraceIdRatio, TraceIdRatio,
        };
        let share = (ratio * VALUES as f64) as u64;
        let (follows_senders, bound) = match kind {
            AlwaysOn => (false, VALUES),
            AlwaysOff => (false, 0),
            TraceIdRatio => (false, share),
            ParentBasedAlwaysOn => (true, VALUES),
            ParentBasedAlwaysOff => (true, 0),
            ParentBasedTraceIdRatio => (true, share),
        };
        Self {
            follows_senders,
            bound,
        }
    }

    /// Decides about what continues a sender's span.
    pub(super) fn follows(self, sender: &Traceparent) -> bool {
        if self.follows_senders {
            return sender.is_sampled;
        }
        let [_, low] = halves(sender.trace_id.to_bytes());
        low >> 1 < self.bound
    }

    /// Decides about what begins a trace. Nobody else knows its id yet, so any random number will do.
    pub(super) fn begins(self) -> bool {
        match self.bound {
            0 => false,
            VALUES => true,
            bound => fastrand::u64(..VALUES) < bound,
        }
    }
}

fn halves(id: [u8; 16]) -> [u64; 2] {
    let id = u128::from_be_bytes(id);
    [(id >> 64) as u64, id as u64]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(low: u64, is_sampled: bool) -> Traceparent {
        let flags = if is_sampled { "01" } else { "00" };
        let text = format!("00-{:016x}{low:016x}-00f067aa0ba902b7-{flags}", 1);
        Traceparent::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_sampler_of_parents_does_what_the_sender_says() {
        for kind in [
            SamplerKind::ParentBasedAlwaysOff,
            SamplerKind::ParentBasedAlwaysOn,
            SamplerKind::ParentBasedTraceIdRatio,
        ] {
            let sampler = Sampler::new(kind, 0.5);
            for low in [0, u64::MAX] {
                assert!(sampler.follows(&sender(low, true)), "{kind:?}");
                assert!(!sampler.follows(&sender(low, false)), "{kind:?}");
            }
        }
    }

    #[test]
    fn other_samplers_do_not_ask_the_sender() {
        for is_sampled in [false, true] {
            let any = sender(u64::MAX, is_sampled);
            assert!(Sampler::new(SamplerKind::AlwaysOn, 0.0).follows(&any));
            assert!(!Sampler::new(SamplerKind::AlwaysOff, 1.0).follows(&any));
            let half = Sampler::new(SamplerKind::TraceIdRatio, 0.5);
            assert!(half.follows(&sender(u64::MAX / 2 - 1, is_sampled)));
            assert!(!half.follows(&sender(u64::MAX / 2 + 1, is_sampled)));
        }
    }

    #[test]
    fn new_traces_are_all_none_or_a_share() {
        let begun = |kind, ratio| {
            let sampler = Sampler::new(kind, ratio);
            (0..10_000).filter(|_| sampler.begins()).count()
        };
        assert_eq!(begun(SamplerKind::ParentBasedAlwaysOn, 0.0), 10_000);
        assert_eq!(begun(SamplerKind::ParentBasedAlwaysOff, 1.0), 0);
        assert_eq!(begun(SamplerKind::TraceIdRatio, 0.0), 0);
        assert_eq!(begun(SamplerKind::ParentBasedTraceIdRatio, 1.0), 10_000);
        let tenth = begun(SamplerKind::ParentBasedTraceIdRatio, 0.1);
        // Ten standard deviations around the mean.
        assert!((700..=1_300).contains(&tenth), "{tenth}");
    }
}
