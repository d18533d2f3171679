//! An identity provider's token endpoint on loopback: OAuth 2.0 with client credentials (RFC 6749, section 4.4).

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// The only client that gets tokens.
pub const CLIENT: (&str, &str) = ("orders-ingestor", "canary-secret");
const SCOPE: &str = "orders.read";

/// A running endpoint. Its thread ends with the process.
pub struct TokenEndpoint {
    port: u16,
    state: Arc<State>,
}

struct State {
    lifetime: Duration,
    issued: AtomicUsize,
    is_refusing: AtomicBool,
}

impl TokenEndpoint {
    /// Starts it. Its tokens live this long.
    pub fn start(lifetime: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            lifetime,
            issued: AtomicUsize::new(0),
            is_refusing: AtomicBool::new(false),
        });
        let served = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that is killed breaks its connection.
                stream.and_then(|stream| served.answer(stream)).ok();
            }
        });
        Self { port, state }
    }

    /// The settings of librdkafka for a client of this endpoint.
    pub fn client_settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("security.protocol", "SASL_PLAINTEXT".to_owned()),
            ("sasl.mechanism", "OAUTHBEARER".to_owned()),
            ("sasl.oauthbearer.method", "oidc".to_owned()),
            ("sasl.oauthbearer.client.id", CLIENT.0.to_owned()),
            ("sasl.oauthbearer.client.secret", CLIENT.1.to_owned()),
            ("sasl.oauthbearer.scope", SCOPE.to_owned()),
            (
                "sasl.oauthbearer.token.endpoint.url",
                format!("http://127.0.0.1:{}/token", self.port),
            ),
        ]
    }

    /// The number of tokens that were issued.
    pub fn issued(&self) -> usize {
        self.state.issued.load(Ordering::Relaxed)
    }

    /// Refuses every client from now on, or does so no longer.
    pub fn set_refusing(&self, is_refusing: bool) {
        self.state.is_refusing.store(is_refusing, Ordering::Relaxed);
    }
}

impl State {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let is_good = is_good_request(&mut BufReader::new(stream.try_clone()?))?;
        let (status, body) = if is_good && !self.is_refusing.load(Ordering::Relaxed) {
            self.issued.fetch_add(1, Ordering::Relaxed);
            let lifetime = self.lifetime.as_secs();
            let token = unsigned_token(lifetime);
            let body =
                json!({"access_token": token, "token_type": "Bearer", "expires_in": lifetime});
            ("200 OK", body)
        } else {
            ("401 Unauthorized", json!({"error": "invalid_client"}))
        };
        let body = body.to_string();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    }
}

fn is_good_request(stream: &mut impl BufRead) -> std::io::Result<bool> {
    let (mut head, mut line) = (Vec::new(), String::new());
    while stream.read_line(&mut line)? > 2 {
        head.push(std::mem::take(&mut line).trim_end().to_owned());
    }
    let value_of = |wanted: &str| {
        head.iter().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case(wanted).then_some(value)
        })
    };
    let length = value_of("Content-Length").and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or_default()];
    stream.read_exact(&mut body)?;
    let credentials = BASE64_STANDARD.encode(format!("{}:{}", CLIENT.0, CLIENT.1));
    Ok(head
        .first()
        .is_some_and(|line| line == "POST /token HTTP/1.1")
        && value_of("Authorization") == Some(&format!("Basic {credentials}"))
        && body == format!("grant_type=client_credentials&scope={SCOPE}").as_bytes())
}

/// A JSON Web Token without a signature, which Kafka's validator for tests accepts until it expires.
fn unsigned_token(lifetime_seconds: u64) -> String {
    let now = chrono::Utc::now().timestamp().unsigned_abs();
    let encode = |part: Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
    let claims = json!({"sub": CLIENT.0, "iat": now, "exp": now + lifetime_seconds});
    format!("{}.{}.", encode(json!({"alg": "none"})), encode(claims))
}
