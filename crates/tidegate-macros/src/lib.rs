//! The attribute macro of the crate `tidegate`, which re-exports and documents it.

use std::mem;

use proc_macro::{Delimiter, Group, Ident, Punct, Spacing, Span, TokenStream, TokenTree};

/// Makes a generated tonic server stream messages that are encoded once for all their receivers.
///
/// In the module of a generated server, and nowhere else, it puts `tidegate::typed::Shared<Message>` in place
/// of each message that it names. The message itself, the client, and every other method stay as they are. One
/// line in the build script attaches it:
///
/// ```text
/// tonic_prost_build::configure()
///     .server_mod_attribute("chat.v1", "#[tidegate::encode_once(ServerEvent)]")
///     .compile_protos(&["proto/chat.proto"], &["proto"])?;
/// ```
///
/// The first argument is the protobuf package. The second is the attribute, which names one or several messages
/// by their paths from that package: `#[tidegate::encode_once(ServerEvent, super::common::Notice)]`. A message
/// that the build script takes from another crate, with `extern_path`, has the path that it has there:
/// `::their_crate::Notice`.
///
/// `tidegate::typed::Grpc` serves the methods that respond with such a message, in place of tonic's handler. It
/// sends a subscription that a method returns in chunks that its subscribers share, and leaves everything else
/// to tonic. The codec of these methods has to be tonic's own for prost, not one of `codec_path`.
///
/// # Errors
/// It is a compile error to name no message:
///
/// ```compile_fail
/// #[tidegate_macros::encode_once()]
/// mod chat_server {}
/// ```
///
/// or a message that no method has:
///
/// ```compile_fail
/// #[tidegate_macros::encode_once(ServerEvent)]
/// mod chat_server {}
/// ```
#[proc_macro_attribute]
pub fn encode_once(messages: TokenStream, module: TokenStream) -> TokenStream {
    let messages: Vec<_> = split_at_commas(messages)
        .into_iter()
        .map(full_path)
        .collect();
    let mut replacer = Replacer {
        found: vec![false; messages.len()],
        messages,
        returns_message: false,
    };
    if replacer.messages.is_empty() {
        return error("name a message: `#[tidegate::encode_once(ServerEvent)]`");
    }
    let mut out = replacer.replace(module);
    if let Some(i) = replacer.found.iter().position(|found| !found) {
        let message: TokenStream = replacer.messages.swap_remove(i).into_iter().collect();
        out.extend(error(&format!(
            "no method of this service takes or returns a `{message}`"
        )));
    }
    out
}

/// Replacement of messages in the tokens of a module.
struct Replacer {
    /// Path of each message, as tokens.
    messages: Vec<Vec<TokenTree>>,
    /// Whether each message was found.
    found: Vec<bool>,
    /// Whether the method that is being read responds with one of them.
    returns_message: bool,
}

impl Replacer {
    /// Replaces each message in the stream, and in the groups within it.
    fn replace(&mut self, stream: TokenStream) -> TokenStream {
        let tokens: Vec<TokenTree> = stream.into_iter().collect();
        let mut out = Vec::with_capacity(tokens.len());
        let mut i = 0;
        while i < tokens.len() {
            if let Some(len) = self.message_at(&tokens[i..]) {
                self.returns_message |= i >= 2 && is_response_type(&tokens[i - 2..i]);
                wrap(&tokens[i..i + len], &mut out);
                i += len;
                continue;
            }
            out.push(match &tokens[i] {
                TokenTree::Group(group) if i >= 2 && is_arrow(&tokens[i - 2..i]) => {
                    with_stream(group, self.replace_in_arm(group.stream()))
                }
                TokenTree::Group(group) => with_stream(group, self.replace(group.stream())),
                other => other.clone(),
            });
            i += 1;
        }
        out.into_iter().collect()
    }

    /// Replaces each message in the arm of a `match` that serves a method, and tonic's handler too if the
    /// method responds with one.
    fn replace_in_arm(&mut self, arm: TokenStream) -> TokenStream {
        let returns_message = mem::take(&mut self.returns_message);
        let arm = self.replace(arm);
        match mem::replace(&mut self.returns_message, returns_message) {
            true => replace_handler(arm),
            false => arm,
        }
    }

    /// Returns the number of tokens of the path of a message, if one begins here.
    fn message_at(&mut self, tokens: &[TokenTree]) -> Option<usize> {
        let i = self.messages.iter().position(|message| {
            let len = message.len();
            tokens.len() >= len
                && are_equal(message, &tokens[..len])
                // A longer path that begins with it is another item.
                && !is_colons(&tokens[len..])
        })?;
        self.found[i] = true;
        Some(self.messages[i].len())
    }
}

/// Returns the path of a message as the module of a generated server has it: from the module above, unless the
/// path begins at a crate.
fn full_path(message: Vec<TokenTree>) -> Vec<TokenTree> {
    let is_full = is_colons(&message)
        || matches!(&message[0], TokenTree::Ident(first) if first.to_string() == "crate");
    if is_full {
        return message;
    }
    let mut path = vec![Ident::new("super", Span::call_site()).into()];
    path.extend(colons());
    path.extend(message);
    path
}

/// Puts `::tidegate::typed::Grpc` in place of each `tonic::server::Grpc`.
fn replace_handler(stream: TokenStream) -> TokenStream {
    let handler: TokenStream = "tonic::server::Grpc".parse().expect("a path");
    let handler: Vec<TokenTree> = handler.into_iter().collect();
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    let mut out = Vec::with_capacity(tokens.len());
    let mut i = 0;
    while i < tokens.len() {
        if tokens.len() - i >= handler.len() && are_equal(&handler, &tokens[i..]) {
            push_typed("Grpc", tokens[i].span(), &mut out);
            i += handler.len();
            continue;
        }
        out.push(match &tokens[i] {
            TokenTree::Group(group) => with_stream(group, replace_handler(group.stream())),
            other => other.clone(),
        });
        i += 1;
    }
    out.into_iter().collect()
}

/// Appends `::tidegate::typed::Shared<path>`.
fn wrap(path: &[TokenTree], out: &mut Vec<TokenTree>) {
    push_typed("Shared", path[path.len() - 1].span(), out);
    out.push(Punct::new('<', Spacing::Alone).into());
    out.extend(path.iter().cloned());
    out.push(Punct::new('>', Spacing::Alone).into());
}

/// Appends `::tidegate::typed::name`.
fn push_typed(name: &str, span: Span, out: &mut Vec<TokenTree>) {
    for name in ["tidegate", "typed", name] {
        out.extend(colons());
        out.push(Ident::new(name, span).into());
    }
}

/// Returns a group like this one with other tokens in it.
fn with_stream(group: &Group, stream: TokenStream) -> TokenTree {
    let mut replaced = Group::new(group.delimiter(), stream);
    replaced.set_span(group.span());
    replaced.into()
}

/// `=>`
fn is_arrow(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [TokenTree::Punct(a), TokenTree::Punct(b)] if a.as_char() == '=' && b.as_char() == '>')
}

/// `Response =`, as in `type Response = super::ServerEvent;`
fn is_response_type(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [TokenTree::Ident(name), TokenTree::Punct(p)] if name.to_string() == "Response" && p.as_char() == '=')
}

fn colons() -> [TokenTree; 2] {
    [
        Punct::new(':', Spacing::Joint).into(),
        Punct::new(':', Spacing::Alone).into(),
    ]
}

fn is_colons(tokens: &[TokenTree]) -> bool {
    let is_colon = |token: &TokenTree| matches!(token, TokenTree::Punct(p) if p.as_char() == ':');
    tokens.len() >= 2 && is_colon(&tokens[0]) && is_colon(&tokens[1])
}

fn are_equal(a: &[TokenTree], b: &[TokenTree]) -> bool {
    a.iter().zip(b).all(|(a, b)| a.to_string() == b.to_string())
}

fn split_at_commas(stream: TokenStream) -> Vec<Vec<TokenTree>> {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    tokens
        .split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ','))
        .filter(|message| !message.is_empty())
        .map(<[_]>::to_vec)
        .collect()
}

/// Tokens of a compile error.
fn error(message: &str) -> TokenStream {
    let text = TokenTree::Literal(proc_macro::Literal::string(message));
    let arguments = Group::new(Delimiter::Parenthesis, text.into());
    let mut out: Vec<TokenTree> = Vec::new();
    out.extend(colons());
    out.push(Ident::new("core", Span::call_site()).into());
    out.extend(colons());
    out.push(Ident::new("compile_error", Span::call_site()).into());
    out.push(Punct::new('!', Spacing::Alone).into());
    out.push(arguments.into());
    out.push(Punct::new(';', Spacing::Alone).into());
    out.into_iter().collect()
}
