//! The headers by which a sender names its span (W3C Trace Context).

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// The bytes of a `traceparent`, of which later versions may have more.
const LENGTH: usize = 55;
/// A longer `tracestate` is left out. The specification asks for at least so much (section 3.3.1.5).
const MAX_STATE_BYTES: usize = 512;

/// A span of another process. The library's parser allocates, even if the span is not sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Traceparent {
    pub(super) trace_id: TraceId,
    pub(super) span_id: SpanId,
    pub(super) is_sampled: bool,
}

impl Traceparent {
    /// Reads the header (section 3.2). Returns `None` if it is not valid, which counts as if it were missing.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let text = text.trim_ascii();
        let (fields, more) = text.split_at_checked(LENGTH)?;
        let is_separated = [2, 35, 52].iter().all(|index| fields[*index] == b'-');
        let version = hexadecimal(&fields[..2])?;
        let is_complete = match version {
            0 => more.is_empty(),
            0xff => false,
            _ => more.is_empty() || more[0] == b'-',
        };
        let trace_id = hexadecimal(&fields[3..35])?;
        let span_id = u64::try_from(hexadecimal(&fields[36..52])?).ok()?;
        let flags = hexadecimal(&fields[53..])?;
        let is_valid = is_separated && is_complete && trace_id != 0 && span_id != 0;
        is_valid.then(|| Self {
            trace_id: TraceId::from(trace_id),
            span_id: SpanId::from(span_id),
            is_sampled: flags & 1 == 1,
        })
    }

    /// Adds the state, of which a value that is not valid counts as missing. What continues the span is sampled.
    pub(super) fn with_state(self, state: Option<&[u8]>) -> SpanContext {
        let state = state
            .filter(|bytes| bytes.len() <= MAX_STATE_BYTES)
            .and_then(|bytes| str::from_utf8(bytes).ok()?.parse().ok());
        SpanContext::new(
            self.trace_id,
            self.span_id,
            TraceFlags::SAMPLED,
            true,
            state.unwrap_or(TraceState::NONE),
        )
    }
}

fn hexadecimal(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some((number << 4) | u128::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn parse(text: &str) -> Option<Traceparent> {
        Traceparent::parse(text.as_bytes())
    }

    #[test]
    fn ids_and_flag_are_read() {
        for (flags, is_sampled) in [("00", false), ("01", true), ("02", false), ("ff", true)] {
            let sender = parse(&format!(" 00-{TRACE}-{SPAN}-{flags}")).unwrap();
            assert_eq!(sender.trace_id.to_string(), TRACE);
            assert_eq!(sender.span_id.to_string(), SPAN);
            assert_eq!(sender.is_sampled, is_sampled, "{flags}");
        }
    }

    #[test]
    fn a_later_version_may_have_more_fields() {
        assert!(parse(&format!("01-{TRACE}-{SPAN}-01")).is_some());
        assert!(parse(&format!("cc-{TRACE}-{SPAN}-01-what-comes")).is_some());
    }

    #[test]
    fn whatever_is_not_valid_counts_as_missing() {
        let upper = TRACE.to_uppercase();
        let (no_trace, no_span) = ("0".repeat(32), "0".repeat(16));
        for text in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("cc-{TRACE}-{SPAN}-01.more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{upper}-{SPAN}-01"),
            format!("00-{no_trace}-{SPAN}-01"),
            format!("00-{TRACE}-{no_span}-01"),
            format!("00_{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-0x"),
            format!("00-{TRACE}-{SPAN}-0\u{e9}"),
        ] {
            assert_eq!(parse(&text), None, "{text}");
        }
    }

    #[test]
    fn the_state_is_kept_unless_it_is_wrong_or_long() {
        let sender = parse(&format!("00-{TRACE}-{SPAN}-01")).unwrap();
        let kept = |state: &[u8]| sender.with_state(Some(state)).trace_state().header();
        assert_eq!(kept(b"vendor=a,other=b"), "vendor=a,other=b");
        assert_eq!(kept(b"no value"), "");
        assert_eq!(kept(b"\xff=\xff"), "");
        assert_eq!(kept(["v=", &"a".repeat(600)].concat().as_bytes()), "");
        assert!(sender.with_state(None).is_remote());
    }
}
