//! A record that no client library would send: a produce request made by hand.
//!
//! librdkafka's wrapper takes header names as text only. <https://kafka.apache.org/protocol.html>

use std::io::{Read, Write};
use std::net::TcpStream;

/// A header's name and value, any bytes.
pub type RawHeader<'a> = (&'a [u8], Option<&'a [u8]>);

/// A record of one topic's partition 0.
#[derive(Clone, Debug, Default)]
pub struct RawRecord<'a> {
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: &'a [RawHeader<'a>],
}

impl RawRecord<'_> {
    /// Sends it and waits until the broker has it. `brokers` is one `host:port`, which leads the partition.
    pub fn send(&self, brokers: &str, topic: &str) {
        const PRODUCE: i16 = 0;
        const VERSION: i16 = 3;
        let batch = self.batch();
        let mut request = Vec::new();
        request.extend(PRODUCE.to_be_bytes());
        request.extend(VERSION.to_be_bytes());
        request.extend(1_i32.to_be_bytes()); // Correlation id.
        put_string(&mut request, "raw-record");
        request.extend((-1_i16).to_be_bytes()); // No transaction.
        request.extend((-1_i16).to_be_bytes()); // Acknowledged by all replicas.
        request.extend(10_000_i32.to_be_bytes());
        request.extend(1_i32.to_be_bytes()); // One topic.
        put_string(&mut request, topic);
        request.extend(1_i32.to_be_bytes()); // One partition.
        request.extend(0_i32.to_be_bytes());
        request.extend(i32::try_from(batch.len()).unwrap().to_be_bytes());
        request.extend(batch);

        let mut stream = TcpStream::connect(brokers).unwrap();
        stream
            .write_all(&i32::try_from(request.len()).unwrap().to_be_bytes())
            .unwrap();
        stream.write_all(&request).unwrap();
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length)).unwrap()];
        stream.read_exact(&mut answer).unwrap();
        // After the correlation id, the number of topics, the topic's name, the number of partitions and the partition.
        let error = 4 + 4 + 2 + topic.len() + 4 + 4;
        assert_eq!(answer[error..error + 2], [0, 0], "Kafka refused the record");
    }

    /// A batch of format 2 that holds only this record.
    fn batch(&self) -> Vec<u8> {
        let mut record = vec![0]; // Attributes.
        put_varint(&mut record, 0); // Time since the batch's.
        put_varint(&mut record, 0); // Offset in the batch.
        put_bytes(&mut record, self.key);
        put_bytes(&mut record, self.value);
        put_varint(&mut record, i64::try_from(self.headers.len()).unwrap());
        for (name, value) in self.headers {
            put_bytes(&mut record, Some(name));
            put_bytes(&mut record, *value);
        }

        let now = chrono::Utc::now().timestamp_millis();
        let mut checked = Vec::new();
        checked.extend(0_i16.to_be_bytes()); // Attributes: not compressed, time of creation.
        checked.extend(0_i32.to_be_bytes()); // Offset of the last record.
        checked.extend(now.to_be_bytes());
        checked.extend(now.to_be_bytes());
        checked.extend((-1_i64).to_be_bytes()); // No producer id, epoch and sequence.
        checked.extend((-1_i16).to_be_bytes());
        checked.extend((-1_i32).to_be_bytes());
        checked.extend(1_i32.to_be_bytes()); // One record.
        put_varint(&mut checked, i64::try_from(record.len()).unwrap());
        checked.extend(record);

        let mut batch = Vec::new();
        batch.extend(0_i64.to_be_bytes()); // Base offset: the broker decides.
        let rest_length = 4 + 1 + 4 + checked.len();
        batch.extend(i32::try_from(rest_length).unwrap().to_be_bytes());
        batch.extend((-1_i32).to_be_bytes()); // Leader's epoch: unknown.
        batch.push(2); // Format.
        batch.extend(crc32c(&checked).to_be_bytes());
        batch.extend(checked);
        batch
    }
}

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend(i16::try_from(text.len()).unwrap().to_be_bytes());
    bytes.extend(text.as_bytes());
}

fn put_bytes(bytes: &mut Vec<u8>, value: Option<&[u8]>) {
    put_varint(
        bytes,
        value.map_or(-1, |value| i64::try_from(value.len()).unwrap()),
    );
    bytes.extend(value.unwrap_or_default());
}

/// Seven bits per byte, with the sign in the lowest bit.
fn put_varint(bytes: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        bytes.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (POLYNOMIAL * (crc & 1))
        })
    })
}
