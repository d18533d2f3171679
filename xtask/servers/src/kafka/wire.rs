//! The two requests of Kafka's protocol that are needed here: "are you there" and "create a topic".
//!
//! They are written by hand because the alternatives are worse: the console tool starts a JVM, which takes two seconds, and
//! librdkafka would have to be built before anything can start. <https://kafka.apache.org/protocol.html>

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

const API_VERSIONS: i16 = 18;
const CREATE_TOPICS: i16 = 19;

const NO_ERROR: i16 = 0;
const TOPIC_ALREADY_EXISTS: i16 = 36;
/// The answer until the only broker has registered itself.
const INVALID_REPLICATION_FACTOR: i16 = 38;
const NOT_CONTROLLER: i16 = 41;
const REQUEST_TIMED_OUT: i16 = 7;

/// Returns whether a broker answers requests on a port of loopback.
pub(super) fn is_ready(port: u16) -> bool {
    // A request of version 0 has an empty body. Its answer starts with an error code.
    request(port, API_VERSIONS, 0, &[]).is_ok_and(|answer| answer.starts_with(&[0, 0]))
}

/// Creates a topic; `None` if the broker is not yet ready for that.
pub(super) fn create_topic(port: u16, name: &str, partitions: u32) -> Result<Option<()>> {
    let answer = request(
        port,
        CREATE_TOPICS,
        2,
        &create_topics_body(name, partitions)?,
    )?;
    match error_of_created_topic(&answer).context("Kafka's answer cannot be parsed")? {
        NO_ERROR | TOPIC_ALREADY_EXISTS => Ok(Some(())),
        INVALID_REPLICATION_FACTOR | NOT_CONTROLLER | REQUEST_TIMED_OUT => Ok(None),
        code => bail!("Kafka refuses to create topic {name}: error code {code}"),
    }
}

fn create_topics_body(name: &str, partitions: u32) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    body.extend(1_i32.to_be_bytes());
    put_string(&mut body, name)?;
    body.extend(i32::try_from(partitions)?.to_be_bytes());
    // The replication factor, then no assignments and no settings.
    body.extend(1_i16.to_be_bytes());
    body.extend(0_i32.to_be_bytes());
    body.extend(0_i32.to_be_bytes());
    // The timeout of the broker, and `validate_only`, which is false.
    body.extend(5_000_i32.to_be_bytes());
    body.push(0);
    Ok(body)
}

/// Reads the error code, which follows the throttle time, the length of the array and the name of the topic.
fn error_of_created_topic(answer: &[u8]) -> Option<i16> {
    let name_length = i16_at(answer, 8)?;
    i16_at(answer, 10 + usize::try_from(name_length).ok()?)
}

fn i16_at(bytes: &[u8], index: usize) -> Option<i16> {
    let bytes = bytes.get(index..index + 2)?;
    Some(i16::from_be_bytes(bytes.try_into().ok()?))
}

fn put_string(bytes: &mut Vec<u8>, text: &str) -> Result<()> {
    bytes.extend(i16::try_from(text.len())?.to_be_bytes());
    bytes.extend(text.as_bytes());
    Ok(())
}

/// Sends one request and returns the part of the answer that follows its correlation id.
fn request(port: u16, api: i16, version: i16, body: &[u8]) -> Result<Vec<u8>> {
    let mut message = Vec::new();
    message.extend(api.to_be_bytes());
    message.extend(version.to_be_bytes());
    message.extend(1_i32.to_be_bytes());
    put_string(&mut message, "servers")?;
    message.extend(body);

    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(&i32::try_from(message.len())?.to_be_bytes())?;
    stream.write_all(&message)?;

    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    // The length is not trusted, because the program that listens may not be Kafka.
    let length = usize::try_from(i32::from_be_bytes(length))?;
    if !(4..1_000_000).contains(&length) {
        bail!("the program that listens on port {port} is not Kafka");
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    Ok(answer.split_off(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_code_is_found_behind_the_name() {
        let mut answer = vec![0, 0, 0, 0, 0, 0, 0, 1];
        put_string(&mut answer, "orders").unwrap();
        answer.extend(36_i16.to_be_bytes());
        answer.extend((-1_i16).to_be_bytes());
        assert_eq!(error_of_created_topic(&answer), Some(36));
        assert_eq!(error_of_created_topic(&answer[..12]), None);
    }

    #[test]
    fn a_port_without_kafka_is_not_ready() {
        assert!(!is_ready(crate::ports::free_port().unwrap()));
    }
}
