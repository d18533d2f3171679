//! Hands the bodies of answers to hyper in small pieces.
//!
//! hyper copies what it gets of a body into a buffer of the connection, which never shrinks again. Of an answer that comes in
//! one piece, a client that does not read would keep a second copy, and an idle connection would keep that much memory for as
//! long as it is kept. In pieces, a connection holds at most two of them, and the rest stays where it is, in memory that many
//! answers may share.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Buf, Bytes, Frame, SizeHint};

/// The size of a piece. hyper asks for no further piece while it has as much to send, which is its limit of buffers here.
pub(super) const PIECE_BYTES: usize = 16 * 1024;

/// A body whose data comes in pieces.
#[derive(Debug)]
pub(super) struct InPieces<B: Body> {
    body: B,
    /// What is left of the data that the body has given last.
    rest: Option<B::Data>,
}

impl<B: Body> From<B> for InPieces<B> {
    fn from(body: B) -> Self {
        Self { body, rest: None }
    }
}

impl<B: Body<Data: Unpin> + Unpin> InPieces<B> {
    /// Takes a piece of the data, and keeps the rest.
    fn piece(&mut self, mut data: B::Data) -> Bytes {
        let piece = data.copy_to_bytes(data.remaining().min(PIECE_BYTES));
        self.rest = data.has_remaining().then_some(data);
        piece
    }
}

impl<B: Body<Data: Unpin> + Unpin> Body for InPieces<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Some(rest) = self.rest.take() {
            return Poll::Ready(Some(Ok(Frame::data(self.piece(rest)))));
        }
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            Some(Ok(frame)) => frame,
        };
        Poll::Ready(match frame.into_data() {
            Ok(data) => Some(Ok(Frame::data(self.piece(data)))),
            Err(frame) => frame
                .into_trailers()
                .ok()
                .map(|trailers| Ok(Frame::trailers(trailers))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.as_ref().map_or(0, Buf::remaining) as u64;
        let hint = self.body.size_hint();
        let mut whole = SizeHint::new();
        whole.set_lower(hint.lower() + rest);
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper + rest);
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::future::poll_fn;

    use super::*;

    /// Gives one frame after another, and knows its length.
    struct Frames(VecDeque<Bytes>);

    impl Body for Frames {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|data| Ok(Frame::data(data))))
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_empty()
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.0.iter().map(Bytes::len).sum::<usize>() as u64)
        }
    }

    #[tokio::test]
    async fn large_frames_come_in_pieces_that_are_not_copied_and_small_ones_as_they_are() {
        let large = Bytes::from(vec![b'x'; 2 * PIECE_BYTES + 1]);
        let frames = VecDeque::from([Bytes::from("a"), large.clone(), Bytes::from("b")]);
        let mut body = InPieces::from(Frames(frames));
        let mut left = large.len() + 2;
        for expected in [
            Bytes::from("a"),
            large.slice(..PIECE_BYTES),
            large.slice(PIECE_BYTES..2 * PIECE_BYTES),
            large.slice(2 * PIECE_BYTES..),
            Bytes::from("b"),
        ] {
            assert_eq!(body.size_hint().exact(), Some(left as u64));
            assert!(!body.is_end_stream());
            let frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
            let piece = frame.unwrap().unwrap().into_data().unwrap();
            assert_eq!(piece, expected);
            if large.as_ptr_range().contains(&expected.as_ptr()) {
                assert_eq!(piece.as_ptr(), expected.as_ptr());
            }
            left -= piece.len();
        }
        assert!(body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(0));
    }
}
