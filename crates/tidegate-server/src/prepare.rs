//! Everything that a server makes before it binds its addresses, so that a check of its configuration makes the same.

use crate::{
    config::ServerConfig, error::BindError, memory::Budget,
    network::descriptors::room_for_connections, operations::reload::Reloader,
};

/// The largest message that gRPC's libraries receive by default.
const GRPC_MAX_MESSAGE_BYTES: usize = 4 << 20;

/// The connections below which a limit that nobody chose is too low for a server.
const FEW_CONNECTIONS: usize = 100;

/// Less memory for filters than that is taken for a slip: it is room for some hundred of them.
const LITTLE_FOR_FILTERS: u64 = 256 << 10;

/// The parts of a server, but for its listeners and its hub.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) reloader: Reloader,
    pub(crate) max_connections: usize,
    pub(crate) memory: Budget,
    /// Everything that is no error and yet may be a mistake.
    pub(crate) warnings: Vec<Warning>,
}

/// Something to warn of when a server starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Warning {
    /// The key of the setting that it is about.
    pub(crate) key: &'static str,
    pub(crate) message: String,
}

impl Prepared {
    /// Reads the files that `config` names, and looks at what this process may use.
    ///
    /// Raises the process's soft limit on open files to the hard one.
    pub(crate) fn new(config: &ServerConfig) -> Result<Self, BindError> {
        let reloader = Reloader::new(config)?;
        let max_connections = room_for_connections(config.max_connections)?;
        let memory = Budget::new(config.memory_budget);
        let mut warnings = Warnings(Vec::new());
        if config.max_connections.is_none() && max_connections < FEW_CONNECTIONS {
            warnings.of_few_connections(max_connections);
        }
        warnings.of_memory(&memory, config);
        warnings.of_filters(&memory, config);
        warnings.of_messages(config);
        warnings.of_access(&reloader, config);
        for (key, message) in reloader.tls.iter().flat_map(|tls| tls.warnings()) {
            warnings.add(key, message);
        }
        Ok(Self {
            reloader,
            max_connections,
            memory,
            warnings: warnings.0,
        })
    }
}

/// The warnings so far.
struct Warnings(Vec<Warning>);

impl Warnings {
    fn add(&mut self, key: &'static str, message: impl Into<String>) {
        let message = message.into();
        self.0.push(Warning { key, message });
    }

    fn of_few_connections(&mut self, room: usize) {
        self.add(
            "connections.max",
            format!(
                "the process may open so few files that there is room for no more than {room} connections: raise the hard \
                 limit (`ulimit -Hn`, or LimitNOFILE= of systemd), or set connections.max if that is meant"
            ),
        );
    }

    fn of_memory(&mut self, memory: &Budget, config: &ServerConfig) {
        for message in &memory.warnings {
            self.add("memory_budget", message);
        }
        // Such a publish evicts everything before it, and its own beginning too.
        let max_publish = config.service.publish.max_batch_bytes as u64;
        if memory.bytes < max_publish {
            self.add(
                "memory_budget",
                format!(
                    "the memory budget is less than one publish may have ({} and {max_publish} bytes), and such a \
                     publish evicts everything else: raise memory_budget, or lower limits.max_publish_bytes",
                    memory.bytes
                ),
            );
        }
    }

    fn of_filters(&mut self, memory: &Budget, config: &ServerConfig) {
        let budget = config.max_filter_bytes(memory.bytes);
        if budget < LITTLE_FOR_FILTERS {
            self.add(
                "filter_budget",
                format!(
                    "filters may have {budget} bytes in all, about {} of them, and further subscriptions are refused: \
                     raise filter_budget, or memory_budget, of which it is a quarter",
                    budget / 1_024
                ),
            );
        }
    }

    fn of_messages(&mut self, config: &ServerConfig) {
        let publish = &config.service.publish;
        let beyond = publish
            .max_response_bytes()
            .saturating_sub(GRPC_MAX_MESSAGE_BYTES);
        if beyond == 0 {
            return;
        }
        let fitting = publish.max_event_bytes - beyond;
        self.add(
            "limits.max_event_bytes",
            format!(
                "events may have {} bytes, and gRPC's libraries refuse messages of more than {GRPC_MAX_MESSAGE_BYTES} \
                 unless they are told otherwise: a subscriber with such a library fails at a larger event, comes back, and \
                 fails at it again. Raise the limit of every client, or set limits.max_event_bytes to {fitting} at most",
                publish.max_event_bytes
            ),
        );
    }

    fn of_access(&mut self, reloader: &Reloader, config: &ServerConfig) {
        let is_open = !config.listen.is_local();
        let Some(authenticator) = &reloader.authenticator else {
            if is_open && config.serves_admin() {
                self.add(
                    "admin",
                    "anyone who reaches the server may administer it, and so disconnect clients and end it: leave \
                     admin at auto, or ask for credentials",
                );
            }
            return;
        };
        for fault in authenticator.faults_of_authorities() {
            self.add("auth.jwt.key_set_ca", fault);
        }
        if is_open && config.auth.takes_tokens() && config.tls.is_none() {
            self.add(
                "auth.insecure",
                "credentials are accepted without TLS, and anyone on the path can read and use them",
            );
        }
        if authenticator.has_no_rules() && config.auth.jwt.is_none() {
            self.add(
                "auth.rules",
                "no rules are configured: every request will be denied; set `auth.rules`",
            );
        }
        if authenticator.has_no_tokens() && config.auth.tokens.is_some() {
            self.add(
                "auth.tokens",
                "the file of tokens has no token: `tidegate token` makes its lines",
            );
        }
    }
}
