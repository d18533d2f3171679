//! gzip and brotli for what is long, as `Accept-Encoding` asks.
//!
//! Never a single order: its strong `ETag` names one sequence of bytes, and so short an answer gains little. What comes here
//! has a weak one, or none.

use std::io;

use async_compression::Level;
use async_compression::brotli::EncoderParams;
use async_compression::tokio::bufread::{BrotliEncoder, GzipEncoder};
use futures_util::TryStreamExt;
use http_body_util::BodyDataStream;
use hyper::body::Body;
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};
use warp::Reply;
use warp::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, VARY};
use warp::http::{HeaderMap, HeaderValue};
use warp::reply::Response;

use super::request::{Head, permille};

/// Below it the head outweighs what is saved.
const MIN_BYTES: u64 = 1024;
/// How much is compressed before the connection's task gives way to others.
const CHUNK_BYTES: usize = 8 * 1024;
/// Past these levels time grows much faster than answers shrink; higher ones are for what is compressed once.
const GZIP_LEVEL: Level = Level::Precise(5);
const BROTLI_LEVEL: Level = Level::Precise(4);
/// 256 KiB: brotli's own default of 4 MiB would be memory of every answer under way.
const BROTLI_WINDOW_BITS: i32 = 18;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Gzip,
    Brotli,
}

/// Compresses an answer's body where the client takes it so.
pub fn compress(head: &Head, mut response: Response) -> Response {
    response
        .headers_mut()
        .append(VARY, HeaderValue::from_static("Accept-Encoding"));
    let is_short = response
        .body()
        .size_hint()
        .exact()
        .is_some_and(|bytes| bytes < MIN_BYTES);
    // Without chunks, the end of the connection would have to stand for the end of the answer.
    if is_short || !head.can_stream {
        return response;
    }
    let Some(encoding) = preferred(&head.headers) else {
        return response;
    };
    let (mut parts, body) = response.into_parts();
    let plain = StreamReader::new(BodyDataStream::new(body).map_err(io::Error::other));
    let (name, compressed) = match encoding {
        Encoding::Gzip => ("gzip", stream(GzipEncoder::with_quality(plain, GZIP_LEVEL))),
        Encoding::Brotli => {
            let parameters = EncoderParams::default()
                .quality(BROTLI_LEVEL)
                .window_size(BROTLI_WINDOW_BITS);
            ("br", stream(BrotliEncoder::with_params(plain, parameters)))
        }
    };
    parts
        .headers
        .insert(CONTENT_ENCODING, HeaderValue::from_static(name));
    parts.headers.remove(CONTENT_LENGTH);
    Response::from_parts(parts, compressed.into_body())
}

fn stream(encoder: impl AsyncRead + Send + Sync + 'static) -> Response {
    warp::reply::stream(ReaderStream::with_capacity(encoder, CHUNK_BYTES)).into_response()
}

/// The coding that the client likes best, `None` for none; of those that it likes alike, the one that makes answers
/// shortest.
fn preferred(headers: &HeaderMap) -> Option<Encoding> {
    let codings = [
        // Unless named it is taken too, but liked least.
        (quality(headers, "identity"), None),
        (quality(headers, "gzip"), Some(Encoding::Gzip)),
        (quality(headers, "br"), Some(Encoding::Brotli)),
    ];
    let liked = codings.into_iter().filter(|(quality, _)| *quality > 0);
    liked.max_by_key(|(quality, _)| *quality)?.1
}

/// How much the client likes a coding, in thousandths, and 0 where it does not say (RFC 9110, section 12.5.3).
fn quality(headers: &HeaderMap, coding: &str) -> u16 {
    let mut any = 0;
    let values = headers.get_all(ACCEPT_ENCODING).iter();
    for each in values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
    {
        let mut parts = each.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        if name.eq_ignore_ascii_case(coding) {
            return permille(parts);
        }
        if name == "*" {
            any = permille(parts);
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (&["*;q=0"], None),
            (&["br;q=0, *"], Some(Encoding::Gzip)),
            (&["gzip, *;q=0"], Some(Encoding::Gzip)),
            (&["gzip;q=nonsense"], None),
            (&["gzipped"], None),
        ] {
            let mut headers = HeaderMap::new();
            for value in accepted {
                headers.append(ACCEPT_ENCODING, HeaderValue::from_static(value));
            }
            assert_eq!(preferred(&headers), wanted, "{accepted:?}");
        }
    }
}
