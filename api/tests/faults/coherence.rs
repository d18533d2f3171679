//! Under every fault: no answer is older than the lease, none goes back in time on one process, and afterwards all caches
//! equal the table.

use std::time::Duration;

use api::cache::listener::APPLICATION_NAME as LISTENER;

use crate::scene::{LEASE, Readers, Scene, Writers, assert_kept};
use crate::support::terminate_listener;

/// Between two writes of a writer.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a link passes nothing on.
const BLACK_HOLE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn listener_killed_every_second() {
    let scene = Scene::start().await;
    let (writers, readers) = (Writers::start(&scene, PAUSE), Readers::start(&scene));
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        terminate_listener(&scene.database);
    }
    assert_kept(&scene.conclude(writers, readers).await);
}

/// The listener's connection alone: reads that go to the database see what the cache was not told of.
#[tokio::test(flavor = "multi_thread")]
async fn listener_in_a_black_hole() {
    let scene = Scene::start().await;
    let (writers, readers) = (Writers::start(&scene, PAUSE), Readers::start(&scene));
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        scene.link.hold_named(LISTENER);
        tokio::time::sleep(BLACK_HOLE).await;
        scene.link.mend();
    }
    assert_kept(&scene.conclude(writers, readers).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn database_in_a_black_hole() {
    let scene = Scene::start().await;
    let (writers, readers) = (Writers::start(&scene, PAUSE), Readers::start(&scene));
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        scene.link.hold();
        tokio::time::sleep(BLACK_HOLE).await;
        scene.link.mend();
    }
    assert_kept(&scene.conclude(writers, readers).await);
}

/// The proof is now younger than the lease and now older, so that reads come out of the cache and go past it in turns.
#[tokio::test(flavor = "multi_thread")]
async fn listener_as_slow_as_the_lease() {
    let scene = Scene::start().await;
    let (writers, readers) = (Writers::start(&scene, PAUSE), Readers::start(&scene));
    tokio::time::sleep(Duration::from_secs(3)).await;
    scene
        .link
        .slow_named(LISTENER, LEASE - Duration::from_millis(500));
    tokio::time::sleep(BLACK_HOLE).await;
    for program in &scene.programs {
        let log = program.read_log();
        assert!(!log.contains("listener is away") && log.contains("listener is suspect"));
    }
    scene.link.mend();
    assert_kept(&scene.conclude(writers, readers).await);
}
