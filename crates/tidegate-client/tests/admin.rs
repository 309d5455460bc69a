//! Lists of the admin service, page by page.

use std::sync::Mutex;

use tidegate_client::{Client, Error, ListOptions, Violation};
use tidegate_proto::v1::{
    DisconnectClientRequest, DisconnectClientResponse, DrainRequest, DrainResponse,
    GetServerRequest, GetServerResponse, ListPublishStreamsRequest, ListPublishStreamsResponse,
    ListSubscriptionsRequest, ListSubscriptionsResponse, SubscriptionState,
    admin_service_server::{AdminService, AdminServiceServer},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// A server whose pages name these as the next ones, each with one subscription.
struct Pages(Mutex<Vec<&'static str>>);

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
        let mut pages = self.0.lock().unwrap();
        if pages.is_empty() {
            return Err(Status::internal("there is no further page"));
        }
        Ok(Response::new(ListSubscriptionsResponse {
            subscriptions: vec![SubscriptionState::default()],
            next_page_token: pages.remove(0).into(),
            ..Default::default()
        }))
    }

    async fn list_publish_streams(
        &self,
        _: Request<ListPublishStreamsRequest>,
    ) -> Result<Response<ListPublishStreamsResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
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

async fn list(pages: Vec<&'static str>) -> Result<Vec<SubscriptionState>, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder()
        .add_service(AdminServiceServer::new(Pages(Mutex::new(pages))))
        .serve_with_incoming(TcpListenerStream::new(listener));
    let client = Client::connect_lazy(format!("http://{address}")).unwrap();
    tokio::select! {
        result = async { client.admin().subscriptions(&ListOptions::default()).await } => result,
        result = server => panic!("{result:?}"),
    }
}

#[tokio::test]
async fn list_has_the_subscriptions_of_every_page() {
    assert_eq!(list(vec!["2", "3", ""]).await.unwrap().len(), 3);
}

#[tokio::test]
async fn page_that_names_itself_ends_the_list() {
    let error = list(vec!["2", "2", "2"]).await.unwrap_err();
    assert!(
        matches!(error, Error::Violation(Violation::Page)),
        "{error:?}"
    );
}
