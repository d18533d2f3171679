//! gzip and brotli for long answers, if `Accept-Encoding` allows them.
//!
//! A single order is never compressed: its strong `ETag` stands for one sequence of bytes, and so short an answer gains
//! little. Answers that come here have a weak `ETag` or none.

use std::io;

use async_compression::Level;
use async_compression::brotli::EncoderParams;
use async_compression::tokio::bufread::{BrotliEncoder, GzipEncoder};
use bytes::Bytes;
use futures_util::{FutureExt, TryStreamExt};
use http_body_util::BodyDataStream;
use hyper::body::Body;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::io::{ReaderStream, StreamReader};
use warp::Reply;
use warp::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, VARY};
use warp::http::{HeaderMap, HeaderValue};
use warp::reply::Response;

use super::problem::{ApiError, Unacceptable};
use super::request::Head;

/// For shorter bodies the additional header outweighs what is saved.
const MIN_BYTES: u64 = 1024;
/// How much is compressed before the connection's task yields to others.
const CHUNK_BYTES: usize = 8 * 1024;
/// Above these levels the time grows much faster than the answers shrink.
const GZIP_LEVEL: Level = Level::Precise(5);
const BROTLI_LEVEL: Level = Level::Precise(4);
/// For content that is compressed only once.
const HIGH_LEVEL: Level = Level::Precise(9);
/// 256 KiB, because every answer under way needs a window. The default of brotli is 4 MiB.
const BROTLI_WINDOW_BITS: i32 = 18;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Gzip,
    Brotli,
}

impl Encoding {
    fn name(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
        })
    }
}

/// Compresses the body of an answer if the client accepts it.
///
/// # Errors
/// Returns `NotAcceptable` if the client accepts neither a compressed answer nor a plain one.
pub fn compress(head: &Head, mut response: Response) -> Result<Response, ApiError> {
    vary(response.headers_mut());
    let Some(encoding) = encoding(head, response.body().size_hint().exact())? else {
        return Ok(response);
    };
    let (mut parts, body) = response.into_parts();
    let plain = StreamReader::new(BodyDataStream::new(body).map_err(io::Error::other));
    let compressed = match encoding {
        Encoding::Gzip => stream(GzipEncoder::with_quality(plain, GZIP_LEVEL)),
        Encoding::Brotli => {
            let parameters = EncoderParams::default()
                .quality(BROTLI_LEVEL)
                .window_size(BROTLI_WINDOW_BITS);
            stream(BrotliEncoder::with_params(plain, parameters))
        }
    };
    parts.headers.insert(CONTENT_ENCODING, encoding.name());
    parts.headers.remove(CONTENT_LENGTH);
    Ok(Response::from_parts(parts, compressed.into_body()))
}

/// Content that never changes, with its compressed forms.
#[derive(Debug)]
pub struct Precompressed {
    plain: Bytes,
    gzip: Bytes,
    brotli: Bytes,
}

impl Precompressed {
    /// Compresses the content.
    pub fn new(content: &'static [u8]) -> Self {
        Self {
            plain: Bytes::from_static(content),
            gzip: read_all(GzipEncoder::with_quality(content, HIGH_LEVEL)),
            brotli: read_all(BrotliEncoder::with_quality(content, HIGH_LEVEL)),
        }
    }

    /// Answers in the form that the client prefers.
    ///
    /// # Errors
    /// Returns `NotAcceptable` if the client accepts neither a compressed answer nor a plain one.
    pub fn response(&self, head: &Head) -> Result<Response, ApiError> {
        let encoding = encoding(head, Some(self.plain.len() as u64))?;
        let body = match encoding {
            None => &self.plain,
            Some(Encoding::Gzip) => &self.gzip,
            Some(Encoding::Brotli) => &self.brotli,
        };
        let mut response = Response::new(body.clone().into());
        if let Some(encoding) = encoding {
            let headers = response.headers_mut();
            headers.insert(CONTENT_ENCODING, encoding.name());
        }
        Ok(response)
    }
}

fn read_all(mut encoder: impl AsyncRead + Unpin) -> Bytes {
    let mut compressed = Vec::new();
    let reading = encoder.read_to_end(&mut compressed).now_or_never();
    reading
        .expect("nothing waits for memory")
        .expect("compressing in memory cannot fail");
    compressed.into()
}

/// Says in an answer that it depends on `Accept-Encoding`.
pub fn vary(headers: &mut HeaderMap) {
    headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
}

/// Chooses the encoding of an answer; a body of unknown length counts as long. A client that refuses plain answers gets
/// short ones encoded, too.
fn encoding(head: &Head, body_bytes: Option<u64>) -> Result<Option<Encoding>, ApiError> {
    let is_short = body_bytes.is_some_and(|bytes| bytes < MIN_BYTES);
    let must_encode = head.coding_quality("identity") == Some(0);
    // Without chunks, only the end of the connection would mark the end of a compressed stream.
    let may_encode = head.can_stream() && (must_encode || !is_short);
    match may_encode.then(|| preferred(head)).flatten() {
        None if must_encode => Err(ApiError::NotAcceptable(Unacceptable::Coding)),
        chosen => Ok(chosen),
    }
}

fn stream(encoder: impl AsyncRead + Send + Sync + 'static) -> Response {
    warp::reply::stream(ReaderStream::with_capacity(encoder, CHUNK_BYTES)).into_response()
}

/// Returns the encoding that the client prefers, `None` for none. Of two that it likes alike, the one that compresses
/// better is chosen.
fn preferred(head: &Head) -> Option<Encoding> {
    let quality = |coding| head.coding_quality(coding).unwrap_or(0);
    let codings = [
        // Accepted even if it is not named, but then with the lowest quality.
        (quality("identity"), None),
        (quality("gzip"), Some(Encoding::Gzip)),
        (quality("br"), Some(Encoding::Brotli)),
    ];
    let liked = codings.into_iter().filter(|(quality, _)| *quality > 0);
    liked.max_by_key(|(quality, _)| *quality)?.1
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use warp::http::header::ACCEPT_ENCODING;
    use warp::http::{HeaderMap, Method, Version};

    use super::*;
    use crate::http::request::Sender;

    fn head(accepted: &[&'static str]) -> Head {
        let values = accepted.iter().copied().map(HeaderValue::from_static);
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(ACCEPT_ENCODING, value);
        }
        Head {
            method: Method::GET,
            headers,
            query: String::new(),
            version: Version::HTTP_11,
            sender: Sender {
                peer: Ipv4Addr::LOCALHOST.into(),
                client: Ipv4Addr::LOCALHOST.into(),
            },
        }
    }

    #[test]
    fn the_best_liked_coding_is_taken() {
        for (accepted, wanted) in [
            (&[][..], None),
            (&[""], None),
            (&["gzip, deflate, br, zstd"], Some(Encoding::Brotli)),
            (&["gzip", "br"], Some(Encoding::Brotli)),
            (&["gzip, deflate"], Some(Encoding::Gzip)),
            (&["GZIP"], Some(Encoding::Gzip)),
            (&["deflate, zstd"], None),
            (&["br;q=0.5, gzip;q=0.8"], Some(Encoding::Gzip)),
            (&["br; q=0.5 , gzip ; q=0.501"], Some(Encoding::Gzip)),
            (&["br;Q=1.0, gzip;q=0.8"], Some(Encoding::Brotli)),
            (&["br;q=0, gzip"], Some(Encoding::Gzip)),
            (&["br;q=0, gzip;q=0.000"], None),
            (&["gzip;q=0.5, identity"], None),
            (&["gzip;q=0.5, identity;q=0.1"], Some(Encoding::Gzip)),
            (&["identity;q=0, gzip;q=0.1"], Some(Encoding::Gzip)),
            (&["*"], Some(Encoding::Brotli)),
            (&["*;q=0, identity"], None),
            (&["br;q=0, *"], Some(Encoding::Gzip)),
            (&["gzip, *;q=0"], Some(Encoding::Gzip)),
            (&["gzip;q=nonsense"], None),
            (&["gzipped"], None),
        ] {
            assert_eq!(encoding(&head(accepted), None), Ok(wanted), "{accepted:?}");
        }
    }

    #[test]
    fn a_plain_answer_is_not_sent_to_whoever_refuses_it() {
        for accepted in ["identity;q=0, gzip", "*;q=0, gzip"] {
            let head = head(&[accepted]);
            assert_eq!(encoding(&head, Some(1)), Ok(Some(Encoding::Gzip)));
            assert!(head.require_accepts_json().is_err(), "{accepted}");
        }
        for accepted in ["identity;q=0", "*;q=0", "identity;q=0, deflate"] {
            let refused = Err(ApiError::NotAcceptable(Unacceptable::Coding));
            assert_eq!(encoding(&head(&[accepted]), None), refused, "{accepted}");
        }
        assert_eq!(encoding(&head(&["gzip"]), Some(1)), Ok(None));
    }
}
