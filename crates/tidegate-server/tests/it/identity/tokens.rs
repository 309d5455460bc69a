//! The text of tokens: times, lengths, and headers that must be understood.

use std::time::SystemTime;

use serde_json::{Value, json};
use tidegate_server::JwtKeys;
use tokio::time;
use tonic::Code;

use super::{AUDIENCE, Signer, auth, bearer, claims, jwt, start, with};
use crate::{
    common::*,
    pki::{Folder, end},
};

/// A server that takes tokens of the signer.
async fn with_signer() -> (Folder, Signer, Running) {
    let (folder, signer) = (Folder::new(), Signer::p256());
    let keys = vec![JwtKeys::Pem(folder.write("key.pem", &signer.public))];
    let server = start(auth(&folder, Some(jwt(keys)))).await;
    (folder, signer, server)
}

fn now() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_secs_f64()
}

#[tokio::test]
async fn an_expiry_between_two_seconds_ends_a_stream_in_time() {
    let (_folder, signer, server) = with_signer().await;
    let token = signer.sign(&with(claims("dora"), "exp", now() + 1.25));
    let dora = bearer(&server, &token).await;
    let stream = dora.subscribe("", &["orders.a"]).await.unwrap();
    let (_, status) = time::timeout(PATIENCE, end(stream)).await.unwrap();
    assert_eq!(reason(&status), "CREDENTIALS_EXPIRED");
    let status = dora.publish("orders.a").await.unwrap_err();
    assert_eq!(reason(&status), "CREDENTIALS_EXPIRED");
}

#[tokio::test]
async fn times_and_audiences_are_taken_as_issuers_write_them() {
    let (_folder, signer, server) = with_signer().await;
    let soon = now() + 600.811;
    let good = claims("dora");
    for claims in [
        with(good.clone(), "exp", soon),
        with(with(good.clone(), "iat", now() - 0.5), "nbf", now() - 0.5),
        with(good.clone(), "aud", json!(["other", AUDIENCE])),
        // Names that mean nothing here.
        with(good.clone(), "scope", "read write"),
    ] {
        let token = signer.sign(&claims);
        bearer(&server, &token)
            .await
            .publish("orders.a")
            .await
            .unwrap();
    }
    // As a number may be written, and no library writes it.
    let text = with(good.clone(), "exp", Value::Null).to_string();
    let text = text.replace("null", &format!("{:.3}e-3", soon * 1e3));
    assert!(text.contains("e-3"), "{text}");
    let token = signer.sign_text(r#"{"alg":"ES256"}"#, &text);
    bearer(&server, &token)
        .await
        .publish("orders.a")
        .await
        .unwrap();

    for claims in [
        with(good.clone(), "exp", soon.to_string()),
        with(good.clone(), "exp", -1),
        with(good.clone(), "exp", 1e300),
        // In milliseconds, it would be good for 56,000 years.
        with(good.clone(), "exp", (soon * 1e3).floor() as u64),
        with(good.clone(), "nbf", "0"),
        with(good.clone(), "iat", "2026-11-27"),
        with(good.clone(), "aud", json!([])),
        with(good.clone(), "aud", json!([AUDIENCE, 1])),
        with(good.clone(), "iss", json!([good["iss"]])),
    ] {
        let token = signer.sign(&claims);
        let status = bearer(&server, &token).await.publish("orders.a").await;
        assert_eq!(
            reason(&status.unwrap_err()),
            "CREDENTIALS_INVALID",
            "{claims}"
        );
    }
}

#[tokio::test]
async fn headers_that_must_be_understood_are_refused() {
    let (_folder, signer, server) = with_signer().await;
    let claims = claims("dora").to_string();
    for (header, is_good) in [
        (r#"{"alg":"ES256"}"#, true),
        (r#"{"alg":"ES256","typ":"at+jwt","x":[1]}"#, true),
        (r#"{"alg":"ES256","crit":["exp"],"exp":9999999999}"#, false),
        (r#"{"alg":"ES256","crit":["b64"],"b64":true}"#, false),
        (r#"{"alg":"ES256","crit":["b64"],"b64":false}"#, false),
        (r#"{"alg":"ES256","b64":false}"#, false),
        (r#"{"alg":"ES256","crit":[]}"#, false),
        (r#"{"alg":"ES256","crit":"exp"}"#, false),
        (r#"{"alg":"ES256","crit":["nothing"]}"#, false),
        (r#"{"alg":"ES256","kid":7}"#, false),
        (r#"{"alg":"none","alg":"ES256"}"#, false),
        (r#"["ES256"]"#, false),
    ] {
        let token = signer.sign_text(header, &claims);
        let published = bearer(&server, &token).await.publish("orders.a").await;
        assert_eq!(published.is_ok(), is_good, "{header}");
        if let Err(status) = published {
            assert_eq!(reason(&status), "CREDENTIALS_INVALID", "{header}");
        }
    }
}

/// The groups of a user, say, make a token long.
#[tokio::test]
async fn a_token_may_be_as_long_as_headers() {
    let (_folder, signer, server) = with_signer().await;
    // In base64, a third more. The rest of the 16 KiB is for the other headers.
    for filler in [6_700, 9_000, 11_500] {
        let token = signer.sign(&with(claims("dora"), "groups", "x".repeat(filler)));
        let dora = bearer(&server, &token).await;
        let published = dora.publish("orders.a").await;
        assert!(published.is_ok(), "{} bytes: {published:?}", token.len());
    }
    // A longer one is refused by HTTP, before there is a call.
    let token = signer.sign(&with(claims("dora"), "groups", "x".repeat(20_000)));
    let status = bearer(&server, &token).await.publish("orders.a").await;
    let status = status.unwrap_err();
    assert_ne!(status.code(), Code::Ok);
    assert!(status.message().contains("431"), "{status:?}");
}
