//! Tokens are rotated while the program runs.

use std::fs;
use std::process::Command;

use shared::testing::{TestDatabase, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::program::Program;
use crate::support::tokens::{TokenFile, bearer};
use crate::support::{PATIENCE, model, store};

impl Program {
    fn hang_up(&self) {
        let pid = self.process.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-HUP", &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    async fn status_with(&self, token: &str) -> u16 {
        let authorization = bearer(token);
        self.send(&format!(
            "GET /order/b563feb7b2b84b6test HTTP/1.1\r\nHost: a\r\nAuthorization: {authorization}\r\nConnection: close\r\n\r\n"
        ))
        .await
        .status
    }

    async fn open(&self, token: &str, path: &str, accept: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let authorization = bearer(token);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: {authorization}\r\nAccept: {accept}\r\n\
             Connection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).await.unwrap();
        assert_eq!(&begin, b"HTTP/1.1 200");
        stream
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_works_and_a_withdrawn_one_ends_with_its_streams() {
    let database = TestDatabase::create();
    store(&database, &model());
    let file = TokenFile::new(&[("old", "read"), ("shrunk", "read"), ("kept", "read")]);
    let path = file.path.to_str().unwrap();
    let program = Program::start(&database, &[("API_TOKENS_FILE", path)]).await;
    let mut withdrawn = vec![];
    for token in ["old", "shrunk"] {
        withdrawn.push(
            program
                .open(token, "/api/v1/events", "text/event-stream")
                .await,
        );
    }
    let kept = program
        .open("kept", "/api/v1/events", "text/event-stream")
        .await;
    file.write(&[("new", "read"), ("shrunk", "write"), ("kept", "read,write")]);
    program.hang_up();
    for mut stream in withdrawn {
        let reading = async { stream.read_to_end(&mut Vec::new()).await };
        let ended = tokio::time::timeout(PATIENCE, reading).await;
        ended
            .expect("the stream of a withdrawn token ends")
            .unwrap();
    }
    for (token, status) in [("new", 200), ("old", 401), ("shrunk", 403), ("kept", 200)] {
        assert_eq!(program.status_with(token).await, status, "{token}");
    }
    let mut begun = [0; 4096];
    let got = kept.try_read(&mut begun).unwrap_or(1);
    assert_ne!(got, 0, "the stream of a token that is still valid goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_leaves_the_former_tokens_in_force() {
    let database = TestDatabase::create();
    store(&database, &model());
    let file = TokenFile::new(&[("good", "read")]);
    let path = file.path.to_str().unwrap();
    let program = Program::start(&database, &[("API_TOKENS_FILE", path)]).await;
    for (content, reason) in [
        ("good read\n", "line 1: a line has three fields"),
        ("# nothing\n", "it has no token"),
    ] {
        fs::write(&file.path, content).unwrap();
        program.hang_up();
        program.wait_until_logged(reason).await;
        assert_eq!(program.status_with("good").await, 200, "{content:?}");
    }
    file.write(&[("better", "read")]);
    // Without a signal: the file is read again by itself.
    eventually("the new token works", PATIENCE, async || {
        program.status_with("better").await == 200
    })
    .await;
    assert_eq!(program.status_with("good").await, 401);
}
