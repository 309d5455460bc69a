//! Certificates and keys that are made for a test, files that it may change, and clients that show who they are.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use tidegate::proto::{event_service_client::EventServiceClient, *};
use tonic::{
    Request, Status, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

/// A folder of files, gone when the test is over.
pub(crate) struct Folder(PathBuf);

/// An authority that signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// A client that sends a token with each call.
#[derive(Clone)]
pub(crate) struct Bearer {
    client: EventServiceClient<Channel>,
    token: Option<String>,
}

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{}-{}", process::id(), NEXT.fetch_add(1, Relaxed));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Writes a certificate and its key. Returns their paths.
    pub(crate) fn write_pair(&self, pair: &Pair) -> (PathBuf, PathBuf) {
        let certificate = self.write("server.pem", &pair.certificate);
        (certificate, self.write("server.key", &pair.key))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn sign(&self, params: &CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        Pair {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// A certificate for a server at `localhost`.
    pub(crate) fn server(&self) -> Pair {
        self.sign(&CertificateParams::new(vec!["localhost".into()]).unwrap())
    }

    /// A certificate for a client with these names.
    pub(crate) fn client(&self, common_name: &str, names: Vec<SanType>) -> Pair {
        self.sign(&client_params(common_name, names))
    }

    /// The same with this serial number.
    pub(crate) fn numbered_client(&self, common_name: &str, serial: u64) -> Pair {
        let mut params = client_params(common_name, Vec::new());
        params.serial_number = Some(SerialNumber::from(serial));
        self.sign(&params)
    }

    /// The list, in PEM, of certificates of this authority that were revoked. It should have been replaced long ago.
    pub(crate) fn revoked(&self, serials: &[u64]) -> String {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: rcgen::date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(2020, 2, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// One whose time is over.
    pub(crate) fn expired_client(&self, common_name: &str) -> Pair {
        let mut params = client_params(common_name, Vec::new());
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        self.sign(&params)
    }
}

fn client_params(common_name: &str, names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.subject_alt_names = names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// An address of a server with TLS, for those who trust `authority`.
pub(crate) fn tls_endpoint(
    address: SocketAddr,
    authority: &Authority,
    client: Option<&Pair>,
) -> Endpoint {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&authority.pem))
        .domain_name("localhost");
    if let Some(pair) = client {
        tls = tls.identity(Identity::from_pem(&pair.certificate, &pair.key));
    }
    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
    endpoint.tls_config(tls).unwrap()
}

impl Bearer {
    pub(crate) fn new(channel: Channel, token: Option<&str>) -> Self {
        Self {
            client: EventServiceClient::new(channel),
            token: token.map(Into::into),
        }
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        request
    }

    pub(crate) async fn publish(&self, topic: &str) -> Result<(), Status> {
        let events = vec![NewEvent {
            topic: topic.into(),
            ..Default::default()
        }];
        let request = self.request(PublishRequest { events });
        self.client.clone().publish(request).await.map(|_| ())
    }

    /// A stream whose `Subscribed` has come.
    pub(crate) async fn subscribe(
        &self,
        client_id: &str,
        filters: &[&str],
    ) -> Result<Streaming<SubscribeResponse>, Status> {
        let request = self.request(SubscribeRequest {
            client_id: client_id.into(),
            filters: filters.iter().map(ToString::to_string).collect(),
            ..Default::default()
        });
        let mut stream = self.client.clone().subscribe(request).await?.into_inner();
        stream.message().await?;
        Ok(stream)
    }
}

/// The status with which a stream ends, and what its `GoingAway` said, if there was one. Fails on an event.
pub(crate) async fn end(mut stream: Streaming<SubscribeResponse>) -> (Option<GoingAway>, Status) {
    use subscribe_response::Response;
    let mut going_away = None;
    loop {
        match stream.message().await {
            Ok(Some(SubscribeResponse {
                response: Some(Response::GoingAway(message)),
            })) => {
                going_away = Some(message);
            }
            Ok(Some(SubscribeResponse {
                response: Some(Response::Heartbeat(_)),
            })) => {}
            Ok(other) => panic!("expected the end: {other:?}"),
            Err(status) => return (going_away, status),
        }
    }
}
