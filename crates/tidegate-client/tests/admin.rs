//! Lists of the admin service, page by page.

use std::sync::Mutex;

use tidegate_client::{Client, Error, ListOptions, Violation};
use tidegate_proto::v1::{
    DisconnectClientRequest, DisconnectClientResponse, DrainRequest, DrainResponse,
    GetServerRequest, GetServerResponse, ListPublishStreamsRequest, ListPublishStreamsResponse,
    ListSubscriptionsRequest, ListSubscriptionsResponse, PublishStreamState, SubscriptionState,
    admin_service_server::{AdminService, AdminServiceServer},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// A server whose pages name these as the next ones, each with one subscription or publish stream.
struct Pages(Mutex<Vec<&'static str>>);

impl Pages {
    fn next(&self) -> Result<String, Status> {
        let mut pages = self.0.lock().unwrap();
        if pages.is_empty() {
            return Err(Status::internal("there is no further page"));
        }
        Ok(pages.remove(0).into())
    }
}

#[tonic::async_trait]
impl AdminService for Pages {
    async fn get_server(
        &self,
        _: Request<GetServerRequest>,
    ) -> Result<Response<GetServerResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn list_subscriptions(
        &self,
        _: Request<ListSubscriptionsRequest>,
    ) -> Result<Response<ListSubscriptionsResponse>, Status> {
        Ok(Response::new(ListSubscriptionsResponse {
            subscriptions: vec![SubscriptionState::default()],
            next_page_token: self.next()?,
            ..Default::default()
        }))
    }

    async fn list_publish_streams(
        &self,
        _: Request<ListPublishStreamsRequest>,
    ) -> Result<Response<ListPublishStreamsResponse>, Status> {
        Ok(Response::new(ListPublishStreamsResponse {
            publish_streams: vec![PublishStreamState::default()],
            next_page_token: self.next()?,
            ..Default::default()
        }))
    }

    async fn disconnect_client(
        &self,
        _: Request<DisconnectClientRequest>,
    ) -> Result<Response<DisconnectClientResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

/// The numbers of subscriptions and of publish streams in lists of these pages.
async fn list(pages: &[&'static str]) -> [Result<usize, Error>; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let twice = Mutex::new([pages, pages].concat());
    let server = Server::builder()
        .add_service(AdminServiceServer::new(Pages(twice)))
        .serve_with_incoming(TcpListenerStream::new(listener));
    let mut admin = Client::connect_lazy(format!("http://{address}"))
        .unwrap()
        .admin();
    let lists = async {
        let subscriptions = admin.subscriptions(&ListOptions::default()).await;
        let publish_streams = admin.publish_streams().await;
        [
            subscriptions.map(|listed| listed.len()),
            publish_streams.map(|listed| listed.len()),
        ]
    };
    tokio::select! {
        results = lists => results,
        result = server => panic!("{result:?}"),
    }
}

#[tokio::test]
async fn list_has_the_entries_of_every_page() {
    for result in list(&["2", "3", ""]).await {
        assert_eq!(result.unwrap(), 3);
    }
}

#[tokio::test]
async fn page_that_names_itself_ends_the_list() {
    for result in list(&["2", "2"]).await {
        let error = result.unwrap_err();
        assert!(
            matches!(error, Error::Violation(Violation::Page)),
            "{error:?}"
        );
    }
}
