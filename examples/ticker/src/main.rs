//! The ticker as a program: `ticker serve`, `ticker set ACME 1250`, `ticker watch`.
#![expect(clippy::print_stdout, reason = "this is a program for the terminal")]

use std::{error::Error, net::SocketAddr};

use clap::{Parser, Subcommand};
use tidegate_example_ticker::{
    proto::{SetRequest, Tick, WatchRequest, ticker_client::TickerClient},
    serve,
};
use tokio::net::TcpListener;

/// Prices: a snapshot first, then changes.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server, until it is interrupted.
    Serve {
        /// Address to listen on; port 0 stands for any free port.
        #[arg(long, default_value = "127.0.0.1:50061")]
        listen: SocketAddr,
    },
    /// Print the current prices, and then changes.
    Watch {
        /// Symbols to watch. Without them, all symbols.
        symbols: Vec<String>,
        /// URL of the server.
        #[arg(long, default_value = "http://127.0.0.1:50061")]
        server: String,
    },
    /// Set the price of a symbol.
    Set {
        /// Name of the symbol.
        symbol: String,
        /// Its price in cents.
        cents: u64,
        /// URL of the server.
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
