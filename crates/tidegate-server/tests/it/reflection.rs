//! Server reflection in both versions, over real sockets.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use prost::Message as _;
use prost_types::FileDescriptorProto;
use tidegate_server::ServerConfig;
use tokio::time;
use tokio_stream::Stream;
use tonic::{Code, transport::Channel};
use tonic_reflection::pb::{
    v1::{
        ServerReflectionRequest, ServerReflectionResponse,
        server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    },
    v1alpha,
};

use crate::common::*;

/// A stream of questions to a server, which is open until it is dropped.
struct Asking {
    questions: tokio::sync::mpsc::Sender<ServerReflectionRequest>,
    answers: tonic::Streaming<ServerReflectionResponse>,
}

impl Asking {
    async fn begin(channel: Channel) -> Self {
        let (questions, queue) = tokio::sync::mpsc::channel(1);
        let queue = tokio_stream::wrappers::ReceiverStream::new(queue);
        let answers = ServerReflectionClient::new(channel)
            .server_reflection_info(queue)
            .await;
        let answers = answers.unwrap().into_inner();
        Self { questions, answers }
    }

    async fn ask(&mut self, message: impl Into<Option<MessageRequest>>) -> MessageResponse {
        let question = ServerReflectionRequest {
            host: "here".into(),
            message_request: message.into(),
        };
        self.questions.send(question.clone()).await.unwrap();
        let answer = time::timeout(PATIENCE, self.answers.message()).await;
        let answer = answer.unwrap().unwrap().unwrap();
        assert_eq!(answer.original_request, Some(question));
        assert_eq!(answer.valid_host, "here");
        answer.message_response.unwrap()
    }

    /// Asks for a file, which has to be there.
    async fn file(&mut self, message: MessageRequest) -> FileDescriptorProto {
        match self.ask(message.clone()).await {
            MessageResponse::FileDescriptorResponse(files) => {
                let [file] = &files.file_descriptor_proto[..] else {
                    panic!("{message:?}: {files:?}")
                };
                FileDescriptorProto::decode(&file[..]).unwrap()
            }
            other => panic!("{message:?}: {other:?}"),
        }
    }

    /// Asks for what has to be refused, and returns the code.
    async fn refused(&mut self, message: impl Into<Option<MessageRequest>>) -> Code {
        match self.ask(message).await {
            MessageResponse::ErrorResponse(error) => {
                assert!(!error.error_message.is_empty());
                error.error_code.into()
            }
            other => panic!("{other:?}"),
        }
    }

    async fn services(&mut self) -> Vec<String> {
        match self.ask(MessageRequest::ListServices(String::new())).await {
            MessageResponse::ListServicesResponse(list) => {
                list.service.into_iter().map(|named| named.name).collect()
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn channel(server: &Running) -> Channel {
    server.endpoint().connect().await.unwrap()
}

#[tokio::test]
async fn reflection_answers_what_is_unknown_and_goes_on() {
    let server = Running::start(ServerConfig::default()).await;
    let mut asking = Asking::begin(channel(&server).await).await;
    let name = || "no.such.Thing".to_owned();
    for unknown in [
        MessageRequest::FileContainingSymbol(name()),
        MessageRequest::FileContainingSymbol(String::new()),
        // A package is no symbol, and names are full without a dot.
        MessageRequest::FileContainingSymbol("tidegate.v1".into()),
        MessageRequest::FileContainingSymbol(".tidegate.v1.Event".into()),
        MessageRequest::FileContainingSymbol("x".repeat(4_000)),
        MessageRequest::FileContainingSymbol("\0\u{202e}'\"\r\n".into()),
        MessageRequest::FileByFilename(name()),
        MessageRequest::FileByFilename("../tidegate/v1/event_service.proto".into()),
        MessageRequest::AllExtensionNumbersOfType(name()),
        MessageRequest::FileContainingExtension(Default::default()),
    ] {
        assert_eq!(
            asking.refused(unknown.clone()).await,
            Code::NotFound,
            "{unknown:?}"
        );
    }
    assert_eq!(asking.refused(None).await, Code::InvalidArgument);
    let event = MessageRequest::FileContainingSymbol("tidegate.v1.Event".into());
    let file = asking.file(event).await;
    assert_eq!(file.name(), "tidegate/v1/event_service.proto");
    match asking
        .ask(MessageRequest::AllExtensionNumbersOfType(
            "tidegate.v1.Event".into(),
        ))
        .await
    {
        MessageResponse::AllExtensionNumbersResponse(numbers) => {
            assert_eq!(numbers.base_type_name, "tidegate.v1.Event");
            assert!(numbers.extension_number.is_empty());
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn reflection_answers_the_version_that_older_tools_ask_for() {
    use v1alpha::{
        server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let server = Running::start(ServerConfig::default()).await;
    let ask = |message| v1alpha::ServerReflectionRequest {
        host: "here".into(),
        message_request: Some(message),
    };
    let questions = [
        ask(MessageRequest::FileContainingSymbol("no.such.Thing".into())),
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol(
            "tidegate.v1.EventService.Subscribe".into(),
        )),
    ];
    let answers = ServerReflectionClient::new(channel(&server).await)
        .server_reflection_info(tokio_stream::iter(questions.clone()))
        .await;
    let mut answers = answers.unwrap().into_inner();
    let mut found = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        assert_eq!(answer.original_request.as_ref(), questions.get(found.len()));
        found.push(answer.message_response.unwrap());
    }
    let [
        MessageResponse::ErrorResponse(error),
        MessageResponse::ListServicesResponse(list),
        MessageResponse::FileDescriptorResponse(files),
    ] = &found[..]
    else {
        panic!("{found:?}")
    };
    assert_eq!(Code::from(error.error_code), Code::NotFound);
    assert!(
        list.service
            .iter()
            .any(|named| named.name == "tidegate.v1.EventService")
    );
    assert_eq!(files.file_descriptor_proto.len(), 1);
}

/// The way of grpcurl, grpcui and Postman: list the services, ask for the file of each, and then for the files that these
/// import, until they have them all.
#[tokio::test]
async fn reflection_describes_every_service_that_it_lists_and_no_other() {
    for is_administered in [true, false] {
        let server = Running::start(ServerConfig {
            admin: Some(is_administered),
            ..ServerConfig::default()
        })
        .await;
        let mut asking = Asking::begin(channel(&server).await).await;
        let services = asking.services().await;
        let mut expected = vec![
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "tidegate.v1.AdminService",
            "tidegate.v1.EventService",
        ];
        expected.retain(|name| is_administered || !name.contains("Admin"));
        assert_eq!(services, expected);

        let mut files = HashSet::new();
        let mut symbols = BTreeSet::new();
        for service in &services {
            let file = asking
                .file(MessageRequest::FileContainingSymbol(service.clone()))
                .await;
            let mut missing = vec![file.name().to_owned()];
            while let Some(name) = missing.pop() {
                if !files.insert(name.clone()) {
                    continue;
                }
                let file = asking.file(MessageRequest::FileByFilename(name)).await;
                missing.extend(file.dependency.clone());
                let package = file.package().to_owned();
                for message in &file.message_type {
                    let message_name = format!("{package}.{}", message.name());
                    symbols.extend(
                        message
                            .field
                            .iter()
                            .map(|field| format!("{message_name}.{}", field.name())),
                    );
                    symbols.insert(message_name);
                }
                for service in &file.service {
                    let service_name = format!("{package}.{}", service.name());
                    symbols.extend(
                        service
                            .method
                            .iter()
                            .map(|method| format!("{service_name}.{}", method.name())),
                    );
                }
                for enumeration in &file.enum_type {
                    symbols.extend(
                        enumeration
                            .value
                            .iter()
                            .map(|value| format!("{package}.{}", value.name())),
                    );
                }
            }
        }
        assert!(
            symbols.contains("tidegate.v1.OVERFLOW_CONFLATE"),
            "{symbols:?}"
        );
        for symbol in symbols {
            asking
                .file(MessageRequest::FileContainingSymbol(symbol))
                .await;
        }
        let admin = MessageRequest::FileContainingSymbol("tidegate.v1.AdminService".into());
        if !is_administered {
            assert_eq!(asking.refused(admin).await, Code::NotFound);
        }
    }
}

#[tokio::test]
async fn reflection_refuses_a_question_that_is_too_long() {
    let server = Running::start(ServerConfig::default()).await;
    let channel = channel(&server).await;
    let mut client = server.client_over(channel.clone());
    let mut neighbor = subscribe(&mut client, filters(&["t"])).await;
    let mut asking = Asking::begin(channel).await;
    let question = ServerReflectionRequest {
        host: "x".repeat(1 << 20),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    asking.questions.send(question).await.unwrap();
    let refused = time::timeout(PATIENCE, asking.answers.message())
        .await
        .unwrap();
    assert_eq!(refused.unwrap_err().code(), Code::OutOfRange);
    publish(&mut client, vec![event("t", "x")]).await.unwrap();
    neighbor.events(1).await;
}

/// Questions without an end, which count how many of them were taken.
fn endless(
    taken: Arc<AtomicUsize>,
) -> impl Stream<Item = ServerReflectionRequest> + Send + 'static {
    tokio_stream::iter(std::iter::repeat_with(move || {
        taken.fetch_add(1, Relaxed);
        ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::FileContainingSymbol(
                "tidegate.v1.Event".into(),
            )),
        }
    }))
}

#[tokio::test]
async fn endless_questions_are_held_up_until_their_answers_are_read() {
    let server = Running::start(ServerConfig::default()).await;
    let endpoint = server
        .endpoint()
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(1 << 20);
    let channel = endpoint.connect().await.unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    let answers = ServerReflectionClient::new(channel.clone())
        .server_reflection_info(endless(Arc::clone(&taken)))
        .await;
    let mut answers = answers.unwrap().into_inner();
    // No answer is read. The server's window of the request fills up, and then nothing moves.
    let mut before = usize::MAX;
    let stopped = comes_true(Duration::from_millis(200), async || {
        let now = taken.load(Relaxed);
        now == std::mem::replace(&mut before, now)
    });
    assert!(stopped.await, "{before} questions were taken");
    // Another stream of the connection goes on.
    let mut client = server.client_over(channel);
    let mut neighbor = subscribe(&mut client, filters(&["t"])).await;
    publish(&mut client, vec![event("t", "x")]).await.unwrap();
    neighbor.events(1).await;
    // So does this one, as soon as its answers are read.
    for _ in 0..100 {
        answers.message().await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn endless_questions_hold_up_no_drain() {
    let server = Running::start(ServerConfig::default()).await;
    let answers = ServerReflectionClient::new(channel(&server).await)
        .server_reflection_info(endless(Arc::default()))
        .await;
    let mut answers = answers.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    let reading = tokio::spawn(async move {
        loop {
            if let Err(status) = answers.message().await {
                return status;
            }
        }
    });
    let report = server.stop().await;
    assert_eq!(report.connections_cut, 0);
    let status = reading.await.unwrap();
    assert_eq!(reason(&status), "SHUTTING_DOWN");
}
