//! Tokens are rotated while the program runs.

use std::fs;
use std::process::Command;

use shared::testing::{TestDatabase, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::copies::store_copies;
use crate::support::program::Program;
use crate::support::tokens::{TokenFile, bearer};
use crate::support::{PATIENCE, model, store};

impl Program {
    fn hang_up(&self) {
        self.kill("-HUP");
    }

    fn kill(&self, signal: &str) {
        let pid = self.process.id().to_string();
        let killed = Command::new("kill").args([signal, &pid]).status();
        assert!(killed.unwrap().success());
    }

    async fn status_with(&self, token: &str) -> u16 {
        let request = get("/order/b563feb7b2b84b6test", token);
        self.send(&request).await.status
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

fn get(path: &str, token: &str) -> String {
    let authorization = bearer(token);
    format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: {authorization}\r\nConnection: close\r\n\r\n"
    )
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

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_does_not_end_a_server_without_tokens() {
    let program = Program::start(&TestDatabase::create(), &[]).await;
    program.hang_up();
    program
        .wait_until_logged("there is no file of tokens")
        .await;
    assert_eq!(program.get("/livez").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_in_place_of_the_file_neither_stops_the_rotation_nor_the_end_of_the_process() {
    let file = TokenFile::new(&[("good", "read")]);
    let settings = [("API_TOKENS_FILE", file.path.to_str().unwrap())];
    let mut program = Program::start(&TestDatabase::create(), &settings).await;
    fs::remove_file(&file.path).unwrap();
    let made = Command::new("mkfifo").arg(&file.path).status().unwrap();
    assert!(made.success());
    program.hang_up();
    program.wait_until_logged("it is no regular file").await;
    program.kill("-TERM");
    eventually("the program has ended", PATIENCE, async || {
        program.process.try_wait().unwrap().is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_a_withdrawn_token_is_reset_with_what_the_system_has_of_it() {
    let database = TestDatabase::create();
    store_copies(&database, 2_000, 100);
    let file = TokenFile::new(&[("old", "read"), ("kept", "operate")]);
    let settings = [("API_TOKENS_FILE", file.path.to_str().unwrap())];
    let program = Program::start(&database, &settings).await;
    let mut export = program
        .open("old", "/api/v1/orders", "application/x-ndjson")
        .await;
    file.write(&[("kept", "operate")]);
    program.hang_up();
    program.wait_until_logged("other tokens are in force").await;
    eventually("the export has ended", PATIENCE, async || {
        let metrics = program.send(&get("/metrics", "kept")).await.body;
        metrics.contains("orders_api_exports_total{outcome=\"withdrawn\"} 1")
    })
    .await;
    let mut rest = Vec::new();
    assert!(
        export.read_to_end(&mut rest).await.is_err(),
        "{} bytes came",
        rest.len()
    );
}
