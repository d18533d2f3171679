//! What the listener asks of the server, and what it says where it is refused.

use shared::testing::TestDatabase;

use crate::support::program::Program;

#[tokio::test(flavor = "multi_thread")]
async fn server_that_takes_no_writes_is_refused_and_the_log_says_what_to_do() {
    let database = TestDatabase::create();
    let read_only = [
        "ALTER DATABASE ",
        &database.settings().name,
        " SET default_transaction_read_only = on",
    ]
    .concat();
    database.execute(&read_only);
    let program = Program::start(&database, &[]).await;
    program
        .wait_until_logged("reads go to the database: the server takes no writes")
        .await;
    program
        .wait_until_logged("point DB_HOST and DB_PORT at the primary")
        .await;
}
