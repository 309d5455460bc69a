//! Runs the programs of the example over real sockets.

use tidegate_embedding_tests::Program;

const CHAT: &str = env!("CARGO_BIN_EXE_chat");

#[tokio::test]
async fn room_members_get_messages_and_a_private_one_reaches_one() {
    let server = Program::serve(CHAT).await;
    let join = |room: &str, name: &str| {
        Program::start(
            CHAT,
            &["join", room, "--name", name, "--server", &server.url],
        )
    };
    let mut anna = join("blue", "anna");
    anna.prints("* anna is here").await;
    let mut bert = join("blue", "bert");
    bert.prints("* bert is here").await;
    anna.prints("* bert is here").await;
    let mut carl = join("red", "carl");
    carl.prints("* carl is here").await;

    anna.types("hello").await;
    anna.prints("anna: hello").await;
    bert.prints("anna: hello").await;
    anna.types("/to bert psst").await;
    bert.prints("anna (to you): psst").await;
    anna.types("/who").await;
    anna.prints("* here: anna, bert").await;
    anna.types("/to nobody psst").await;
    anna.prints("* nobody heard it").await;
    bert.end().await;
    anna.prints("* bert has gone").await;

    carl.types("still alone").await;
    carl.prints("carl: still alone").await;
    let mut taken = join("red", "carl");
    assert!(!taken.ends().await.success(), "the name is taken");
}
