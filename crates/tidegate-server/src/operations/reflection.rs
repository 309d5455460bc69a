//! Server reflection (`grpc.reflection.v1`, and `v1alpha`, which older tools ask for).
//!
//! # Errors
//! A name that is not found is answered as `error_response`, and the stream goes on, as reflection.proto wants it: tools ask for
//! many names in one stream. The service of `tonic-reflection` ends the stream instead, so only the messages are from
//! that crate.
//!
//! # Versions
//! The messages of v1alpha are those of v1 under another name, so one service answers both.
//!
//! # Work
//! A question is read when the answer to the last one has gone to the transport, in the task of the connection. So a
//! client that asks without end and does not read is held up by HTTP/2, and what it costs is one answer at a time.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message as _;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use tidegate::FILE_DESCRIPTOR_SET;
use tokio_stream::StreamExt as _;
use tonic::{Code, Request, Response, Status, Streaming, codegen::BoxStream};
use tonic_reflection::pb::{
    v1::{
        ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
        ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
        server_reflection_request::MessageRequest,
        server_reflection_response::MessageResponse,
        server_reflection_server::{ServerReflection, ServerReflectionServer},
    },
    v1alpha,
};

/// The only method, in the version that is served.
pub(crate) const METHOD: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// The same method in the version that older tools ask for.
pub(crate) const OLDER_METHOD: &str =
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

/// The reflection service. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Reflection(Arc<Descriptions>);

/// The descriptions of the services, and what each file defines.
#[derive(Debug, Default)]
struct Descriptions {
    /// The names of the services, in the order of the alphabet.
    services: Vec<String>,
    /// Encoded, by their names.
    files: HashMap<String, Bytes>,
    /// The file of each symbol, by the symbol's full name.
    symbols: HashMap<String, Bytes>,
    /// The full names of the messages, which are among the symbols.
    messages: HashSet<String>,
}

impl Reflection {
    /// Describes those of the server's services that are in `served`, and health and reflection themselves.
    pub(crate) fn new(served: &[&str]) -> Self {
        let sets = [
            FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let mut descriptions = Descriptions::default();
        for set in sets {
            let set = FileDescriptorSet::decode(set);
            for file in set.expect("the build made descriptors").file {
                descriptions.add(&file, served);
            }
        }
        descriptions.services.sort_unstable();
        Self(Arc::new(descriptions))
    }

    /// The service of it.
    pub(crate) fn server(&self) -> ServerReflectionServer<Self> {
        ServerReflectionServer::new(self.clone())
    }
}

#[tonic::async_trait]
impl ServerReflection for Reflection {
    type ServerReflectionInfoStream = BoxStream<ServerReflectionResponse>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let descriptions = Arc::clone(&self.0);
        let answers = request
            .into_inner()
            .map(move |question| Ok(descriptions.answer(question?)));
        Ok(Response::new(Box::pin(answers)))
    }
}

// ===== impl Descriptions =====

impl Descriptions {
    /// Adds a file, unless it describes services of ours of which none is served.
    fn add(&mut self, file: &FileDescriptorProto, served: &[&str]) {
        let package = file.package();
        let services: Vec<_> = file
            .service
            .iter()
            .map(|service| join(package, service.name()))
            .collect();
        let is_served =
            |name: &String| !name.starts_with("tidegate.") || served.contains(&&name[..]);
        if !services.is_empty() && !services.iter().any(is_served) {
            return;
        }
        let encoded = Bytes::from(file.encode_to_vec());
        self.files.insert(file.name().to_owned(), encoded.clone());
        for service in &file.service {
            let name = join(package, service.name());
            for method in &service.method {
                self.symbol(join(&name, method.name()), &encoded);
            }
            self.symbol(name, &encoded);
        }
        for message in &file.message_type {
            self.message(package, message, &encoded);
        }
        for enumeration in &file.enum_type {
            self.enumeration(package, enumeration, &encoded);
        }
        self.services.extend(services.into_iter().filter(is_served));
    }

    fn symbol(&mut self, name: String, file: &Bytes) {
        self.symbols.insert(name, file.clone());
    }

    fn message(&mut self, scope: &str, message: &DescriptorProto, file: &Bytes) {
        let name = join(scope, message.name());
        let fields = message.field.iter().map(|field| field.name());
        let choices = message.oneof_decl.iter().map(|choice| choice.name());
        for part in fields.chain(choices) {
            self.symbol(join(&name, part), file);
        }
        for nested in &message.nested_type {
            self.message(&name, nested, file);
        }
        for enumeration in &message.enum_type {
            self.enumeration(&name, enumeration, file);
        }
        self.messages.insert(name.clone());
        self.symbol(name, file);
    }

    fn enumeration(&mut self, scope: &str, enumeration: &EnumDescriptorProto, file: &Bytes) {
        // The values of an enumeration are beside it, and not within, as in C.
        for value in &enumeration.value {
            self.symbol(join(scope, value.name()), file);
        }
        self.symbol(join(scope, enumeration.name()), file);
    }

    fn answer(&self, question: ServerReflectionRequest) -> ServerReflectionResponse {
        let answer = match &question.message_request {
            None => Err((Code::InvalidArgument, "the request asks nothing")),
            Some(MessageRequest::FileByFilename(name)) => self
                .files
                .get(name)
                .map(file_response)
                .ok_or((Code::NotFound, "no file has this name")),
            Some(MessageRequest::FileContainingSymbol(name)) => self
                .symbols
                .get(name)
                .map(file_response)
                .ok_or((Code::NotFound, "no symbol has this name")),
            Some(MessageRequest::FileContainingExtension(_)) => {
                Err((Code::NotFound, "there are no extensions here"))
            }
            Some(MessageRequest::AllExtensionNumbersOfType(name)) => self
                .messages
                .contains(name)
                .then(|| extensions_response(name))
                .ok_or((Code::NotFound, "no message has this name")),
            Some(MessageRequest::ListServices(_)) => Ok(self.services_response()),
        };
        let answer = answer.unwrap_or_else(|(code, message)| {
            MessageResponse::ErrorResponse(ErrorResponse {
                error_code: code.into(),
                error_message: message.into(),
            })
        });
        ServerReflectionResponse {
            valid_host: question.host.clone(),
            original_request: Some(question),
            message_response: Some(answer),
        }
    }

    fn services_response(&self) -> MessageResponse {
        let services = self.services.iter().cloned();
        MessageResponse::ListServicesResponse(ListServiceResponse {
            service: services.map(|name| ServiceResponse { name }).collect(),
        })
    }
}

fn file_response(file: &Bytes) -> MessageResponse {
    MessageResponse::FileDescriptorResponse(FileDescriptorResponse {
        file_descriptor_proto: vec![file.to_vec()],
    })
}

/// No message here has extensions, and that is no error.
fn extensions_response(message: &str) -> MessageResponse {
    MessageResponse::AllExtensionNumbersResponse(ExtensionNumberResponse {
        base_type_name: message.into(),
        extension_number: Vec::new(),
    })
}

/// The full name of what is called `name` within `scope`.
fn join(scope: &str, name: &str) -> String {
    match scope {
        "" => name.into(),
        scope => format!("{scope}.{name}"),
    }
}
