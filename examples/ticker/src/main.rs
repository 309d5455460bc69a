//! The ticker as a program: `ticker serve`, `ticker set ACME 1250`, `ticker watch`.
#![expect(clippy::print_stdout, reason = "this is a program for the terminal")]

use std::{error::Error, net::SocketAddr};

use clap::{Parser, Subcommand};
use tidegate_example_ticker::{
    proto::{SetRequest, Tick, WatchRequest, ticker_client::TickerClient},
    serve,
};
use tokio::net::TcpListener;

/// Prices: a snapshot first, then what changes.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve, until it is interrupted.
    Serve {
        /// Where; port 0 is any that is free.
        #[arg(long, default_value = "127.0.0.1:50061")]
        listen: SocketAddr,
    },
    /// Print prices as they are, and then as they change.
    Watch {
        /// Of which symbols; none is all.
        symbols: Vec<String>,
        /// The server.
        #[arg(long, default_value = "http://127.0.0.1:50061")]
        server: String,
    },
    /// Set the price of a symbol.
    Set {
        /// The symbol.
        symbol: String,
        /// Its price.
        cents: u64,
        /// The server.
        #[arg(long, default_value = "http://127.0.0.1:50061")]
        server: String,
    },
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    match Cli::parse().command {
        Command::Serve { listen } => {
            let listener = TcpListener::bind(listen).await?;
            println!("listening on {}", listener.local_addr()?);
            let signal = async { _ = tokio::signal::ctrl_c().await };
            serve(listener, signal).await
        }
        Command::Watch { symbols, server } => {
            let mut client = TickerClient::connect(server).await?;
            let mut ticks = client.watch(WatchRequest { symbols }).await?.into_inner();
            while let Some(Tick { symbol, cents }) = ticks.message().await? {
                println!("{symbol} {cents}");
            }
            Ok(())
        }
        Command::Set {
            symbol,
            cents,
            server,
        } => {
            let mut client = TickerClient::connect(server).await?;
            let ticks = vec![Tick { symbol, cents }];
            client.set(SetRequest { ticks }).await?;
            Ok(())
        }
    }
}
