//! The connection to the database is cut in the middle of a batch; `make faults` cuts at every byte.

use crate::support::cuts::CutScene;
use crate::support::postgres_proxy::{End, Strike};

#[test]
fn a_batch_that_is_cut_off_anywhere_is_stored_once() {
    let mut scene = CutScene::start();
    let lengths = scene.lengths();
    for (end, [rows, commit, answer]) in [
        (End::Close, [lengths.rows / 2, 0, 0]),
        (End::Reset, [1, 5, 7]),
        (End::Close, [lengths.rows, lengths.commit, lengths.answer]),
        (End::Reset, [lengths.rows, lengths.commit, lengths.answer]),
    ] {
        scene.cut(Strike::Rows(rows, end));
        scene.cut(Strike::Commit(commit, end));
        scene.cut(Strike::Answer(answer, end));
    }
    scene.finish();
}
