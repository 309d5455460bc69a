//! The chat as a program: `chat serve`, and `chat join blue --name anna`.
#![expect(clippy::print_stdout, reason = "this is a program for the terminal")]

use std::{error::Error, net::SocketAddr};

use clap::{Parser, Subcommand};
use tidegate_example_chat::{
    proto::{
        JoinRequest, SayRequest, ServerEvent, WhoRequest, chat_client::ChatClient, say_request::To,
        server_event::Kind,
    },
    serve,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, stdin},
    net::TcpListener,
};
use tonic::transport::Channel;

/// A chat with rooms, private messages, and a list of members.
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
    /// Join a room. Each line goes to the room; `/to NAME TEXT` goes to one person; `/who` lists the members.
    Join {
        /// Name of the room.
        room: String,
        /// Your name.
        #[arg(long)]
        name: String,
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
        Command::Join { room, name, server } => {
            let client = ChatClient::connect(server).await?;
            join(client, room, name).await
        }
    }
}

async fn join(
    mut client: ChatClient<Channel>,
    room: String,
    name: String,
) -> Result<(), Box<dyn Error>> {
    let request = JoinRequest {
        name: name.clone(),
        room: room.clone(),
    };
    let mut events = client.join(request).await?.into_inner();
    let mut typed = BufReader::new(stdin()).lines();
    loop {
        tokio::select! {
            event = events.message() => match event? {
                Some(event) => show(event),
                None => return Ok(()),
            },
            line = typed.next_line() => match line? {
                Some(line) => obey(&mut client, &room, &name, &line).await?,
                None => return Ok(()),
            },
        }
    }
}

fn show(event: ServerEvent) {
    match event.kind {
        Some(Kind::Message(message)) if message.is_private => {
            println!("{} (to you): {}", message.from, message.text);
        }
        Some(Kind::Message(message)) => println!("{}: {}", message.from, message.text),
        Some(Kind::Came(name)) => println!("* {name} is here"),
        Some(Kind::Went(name)) => println!("* {name} has gone"),
        Some(Kind::Missed(count)) => println!("! {count} events are missing here"),
        None => {}
    }
}

/// Sends a typed line, or runs the command in it.
async fn obey(
    client: &mut ChatClient<Channel>,
    room: &str,
    name: &str,
    line: &str,
) -> Result<(), Box<dyn Error>> {
    if line == "/who" {
        let request = WhoRequest { room: room.into() };
        let here = client.who(request).await?.into_inner();
        println!("* here: {}", here.names.join(", "));
        return Ok(());
    }
    let private = line
        .strip_prefix("/to ")
        .and_then(|rest| rest.split_once(' '));
    let (to, text) = match private {
        Some((to, text)) => (To::Name(to.into()), text),
        None => (To::Room(room.into()), line),
    };
    let request = SayRequest {
        from: name.into(),
        text: text.into(),
        to: Some(to),
    };
    if client.say(request).await?.into_inner().reached == 0 {
        println!("* nobody heard it");
    }
    Ok(())
}
