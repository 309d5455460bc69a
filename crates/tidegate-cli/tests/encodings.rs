//! The encodings in which editors and shells write the files of a server.
#![cfg(target_os = "linux")]

mod child;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use child::{Folder, Serve, program};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber,
};
use tidegate_client::{Client, SubscribeOptions, Update};
use tidegate_server::token_line;

const MARK: &str = "\u{feff}";

/// The key of each setting that names a file, and a good content.
fn contents() -> Vec<(&'static str, String)> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).unwrap().pem();
    let list = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2020, 1, 1),
        next_update: rcgen::date_time_ymd(2020, 2, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let public = key.public_key_pem();
    let point = URL_SAFE_NO_PAD.encode(&key.public_key_raw()[1..33]);
    let other = URL_SAFE_NO_PAD.encode(&key.public_key_raw()[33..]);
    let private = key.serialize_pem();
    let list = list.signed_by(&Issuer::new(params, key)).unwrap();
    vec![
        ("tls.certificate", certificate.clone()),
        ("tls.key", private),
        ("tls.client_ca", certificate.clone()),
        ("tls.client_crls", list.pem().unwrap()),
        ("auth.tokens", token_line("alice", "secret").unwrap() + "\n"),
        (
            "auth.rules",
            "[[rule]]\nprincipals = [\"alice\"]\nsubscribe = { allow = [\">\"] }\n".into(),
        ),
        ("auth.jwt.public_keys", public),
        (
            "auth.jwt.secrets",
            "0123456789abcdef0123456789abcdef\n".into(),
        ),
        (
            "auth.jwt.key_sets",
            format!(
                "{{\"keys\":[{{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"{point}\",\"y\":\"{other}\"}}]}}\n"
            ),
        ),
    ]
}

/// A configuration with a file of each kind. `encode` writes them.
fn configured(folder: &Folder, encode: impl Fn(&str, &str) -> Vec<u8>) -> String {
    let mut text = String::from("auth.jwt.issuer = \"i\"\nauth.jwt.audience = \"a\"\n");
    for (key, content) in contents() {
        let path = folder.write(key, encode(key, &content));
        let is_list = key.ends_with('s') && !matches!(key, "auth.tokens" | "auth.rules");
        let value = match is_list {
            true => format!("[{path:?}]"),
            false => format!("{path:?}"),
        };
        text.push_str(&format!("{key} = {value}\n"));
    }
    folder.write("config.toml", encode("config", &text))
}

fn checked(config: &str) -> (Option<i32>, String) {
    let output = program(["check-config", config]).output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn byte_order_marks_and_lines_of_windows_pass_in_each_file() {
    let folder = Folder::new("encodings");
    let plain = configured(&folder, |_, text| text.into());
    let (code, told) = checked(&plain);
    assert_eq!(code, Some(0), "{told}");
    let windows = configured(&folder, |key, text| {
        // A secret is bytes: see below.
        let mark = if key == "auth.jwt.secrets" { "" } else { MARK };
        format!("{mark}{}", text.replace('\n', "\r\n")).into_bytes()
    });
    let (code, told) = checked(&windows);
    assert_eq!(code, Some(0), "{told}");
}

#[test]
fn what_is_not_utf_8_is_named_in_each_file() {
    let folder = Folder::new("utf-16");
    let utf_16 = |text: &str| -> Vec<u8> {
        let units = MARK.encode_utf16().chain(text.encode_utf16());
        units.flat_map(u16::to_le_bytes).collect()
    };
    let config = configured(&folder, |key, text| match key {
        "config" => text.into(),
        _ => utf_16(text),
    });
    let (code, told) = checked(&config);
    assert_eq!(code, Some(2), "{told}");
    for (key, _) in contents() {
        let expected = match key {
            "auth.jwt.secrets" => "begins with a byte order mark".to_owned(),
            _ => format!("{}: is UTF-16 text", folder.at(key)),
        };
        let line = told
            .lines()
            .find(|line| line.contains(&format!(" {key}: ")));
        assert!(
            line.is_some_and(|line| line.contains(&expected)),
            "{key}: {told}"
        );
    }
    let config = folder.write("config.toml", utf_16("log = \"info\"\n"));
    let (code, told) = checked(&config);
    assert_eq!(code, Some(2));
    assert!(told.contains("is UTF-16 text: save it as UTF-8"), "{told}");
    let config = folder.write("config.toml", b"# caf\xe9\nlog = \"info\"\n");
    let (_, told) = checked(&config);
    assert!(told.contains("line 1: not UTF-8 text"), "{told}");
}

#[test]
fn marks_where_files_were_joined_are_named_with_their_lines() {
    let folder = Folder::new("joined");
    let config = configured(&folder, |key, text| match key {
        "config" | "auth.rules" | "auth.jwt.key_sets" => text.into(),
        _ => format!("{text}{MARK}{text}").into_bytes(),
    });
    let (code, told) = checked(&config);
    assert_eq!(code, Some(2), "{told}");
    for (key, content) in contents() {
        if matches!(key, "auth.rules" | "auth.jwt.key_sets" | "auth.jwt.secrets") {
            continue;
        }
        let line = content.matches('\n').count() + 1;
        let expected = format!(
            "{}: line {line}: contains a byte order mark",
            folder.at(key)
        );
        assert!(told.contains(&expected), "{expected} is not in:\n{told}");
    }
}

#[tokio::test]
async fn a_principal_behind_a_mark_has_its_own_name() {
    let folder = Folder::new("principal");
    let line = token_line("alice", "secret").unwrap();
    let tokens = folder.write("tokens", format!("{MARK}{line}\r\n"));
    let rules =
        format!("{MARK}[[rule]]\r\nprincipals = ['alice']\r\nsubscribe = {{ allow = ['a'] }}\r\n");
    let rules = folder.write("rules", rules);
    let server = Serve::start(&["--auth-tokens", &tokens, "--auth-rules", &rules]);
    let client = Client::builder(server.url()).token("secret");
    let client = client.connect_lazy().unwrap();
    let mut subscription = client.subscribe(SubscribeOptions::new(["a"]).no_reconnect());
    let first = subscription.next().await.unwrap().unwrap();
    assert!(matches!(first, Update::Subscribed(_)));
}

#[test]
fn principals_with_characters_that_nobody_sees_are_refused() {
    let folder = Folder::new("unseen");
    let line = token_line("alice", "secret").unwrap();
    for (text, problem) in [
        (format!("a\0{line}\n"), "line 1: contains a NUL"),
        (format!("{line}\na\u{7}{line}\n"), "line 2: "),
        (format!("{line}\na\u{200b}{line}\n"), "line 2: "),
    ] {
        let tokens = folder.write("tokens", text);
        let output = program(["serve", "--listen", "127.0.0.1:0", "--auth-tokens", &tokens])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains(problem), "{told}");
    }
}
