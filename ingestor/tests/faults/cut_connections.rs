//! The connection to the database is cut after N bytes, for N over the rows of a batch, its COMMIT and the answer.

use crate::support::cuts::CutScene;
use crate::support::postgres_proxy::{End, Lengths, Strike};

const CUTS_IN_ROWS: usize = 80;

/// Cuts after each of some numbers of bytes, by FIN and by RST.
fn sweep(positions: impl Iterator<Item = usize>, strike: impl Fn(usize, End) -> Strike) {
    let mut scene = CutScene::start();
    for after_bytes in positions {
        for end in [End::Close, End::Reset] {
            scene.cut(strike(after_bytes, end));
        }
    }
    scene.finish();
}

fn lengths() -> Lengths {
    let scene = CutScene::start();
    let lengths = scene.lengths();
    scene.finish();
    lengths
}

#[test]
fn cut_anywhere_between_the_rows_and_their_commit() {
    let rows = lengths().rows;
    let positions = (0..rows).step_by((rows / CUTS_IN_ROWS).max(1));
    sweep(positions, Strike::Rows);
}

#[test]
fn cut_at_each_byte_of_the_commit() {
    sweep(0..=lengths().commit, Strike::Commit);
}

#[test]
fn cut_at_each_byte_of_the_answer_to_the_commit() {
    sweep(0..=lengths().answer, Strike::Answer);
}
