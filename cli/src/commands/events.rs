//! `sluice events`: follows what happens in the cluster.
//!
//! A stream that breaks is opened again where it broke off: every event carries the token at which
//! to resume, and the last one seen is kept.

use std::{future::pending, ops::ControlFlow, time::Duration};

use clap::Args;
use proto::{settings, v1};
use tokio::{
    signal,
    time::{Instant, sleep},
};
use tonic::Streaming;

use super::Context;
use crate::{
    client::{self, Client},
    error::Error,
    output,
};

pub(crate) const HELP: &str = "\
Examples:
  sluice events
  sluice events --for 1m -o json | jq -r .reason
  sluice events --resume 11a145339eeb35f9.2.6 --count 10

With `--output json` each event is a JSON document on a line of its own.

RPC: AdminService.WatchEvents";

const RECONNECT_EVERY: Duration = Duration::from_millis(500);

/// What to follow, and for how long.
#[derive(Args)]
pub(crate) struct EventsArgs {
    /// Begin after the event that had this token, not with what happens from now on
    #[arg(
        long,
        value_name = "TOKEN",
        default_value = "",
        hide_default_value = true
    )]
    resume: String,
    /// Follow until Ctrl-C; it is the default
    #[arg(short, long)]
    follow: bool,
    /// End after this many events
    #[arg(long, value_name = "N", conflicts_with = "follow")]
    count: Option<u64>,
    /// End after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = settings::duration, conflicts_with = "follow")]
    run_for: Option<Duration>,
}

/// Follows, until the count, the time or Ctrl-C ends it; all three are success.
pub(crate) async fn run(context: &mut Context, args: EventsArgs) -> Result<(), Error> {
    let mut token = args.resume;
    let time_is_up = async {
        match args.run_for {
            Some(duration) => sleep(duration).await,
            None => pending().await,
        }
    };
    let result = tokio::select! {
        result = follow(context, &mut token, args.count) => result,
        () = time_is_up => Ok(()),
        _ = signal::ctrl_c() => Ok(()),
    };
    if !token.is_empty() && result.is_ok() {
        output::note(&format!(
            "`sluice events --resume {token}` goes on from here"
        ));
    }
    result
}

async fn follow(
    context: &mut Context,
    token: &mut String,
    mut left: Option<u64>,
) -> Result<(), Error> {
    if left == Some(0) {
        return Ok(());
    }
    let mut stream = context.client.watch_events(token.clone()).await?;
    loop {
        match print(context, &mut stream, token, &mut left).await? {
            ControlFlow::Break(()) => return Ok(()),
            ControlFlow::Continue(()) => {
                output::note(lost(token));
                stream = reconnect(&mut context.client, token).await?;
            }
        }
    }
}

/// Prints what comes, until enough has (`Break`) or the controller is lost (`Continue`).
async fn print(
    context: &mut Context,
    stream: &mut Streaming<v1::WatchEventsResponse>,
    token: &mut String,
    left: &mut Option<u64>,
) -> Result<ControlFlow<()>, Error> {
    loop {
        let event = match stream.message().await {
            Ok(Some(response)) => response.event.unwrap_or_default(),
            Ok(None) => return Ok(ControlFlow::Continue(())),
            Err(status) if client::is_lost(&status) => return Ok(ControlFlow::Continue(())),
            Err(status) => return Err(client::Error::Refused(status).into()),
        };
        context.output.stream(&event, || line(&event))?;
        token.clone_from(&event.resume_token);
        if let Some(left) = left {
            *left -= 1;
            if *left == 0 {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
}

/// Tries for as long as a call may take.
async fn reconnect(
    client: &mut Client,
    token: &str,
) -> Result<Streaming<v1::WatchEventsResponse>, Error> {
    let deadline = Instant::now() + client.timeout();
    loop {
        sleep(RECONNECT_EVERY).await;
        match client.watch_events(token.to_owned()).await {
            Err(error) if error.is_lost() && Instant::now() < deadline => {}
            done => return Ok(done?),
        }
    }
}

fn lost(token: &str) -> &'static str {
    match token {
        "" => "Warning: lost the controller; what happens until it is back is not seen here",
        _ => "Warning: lost the controller; waiting for it to go on from here",
    }
}

fn line(event: &v1::Event) -> String {
    format!(
        "{}  {:>6}  {:<18}  {:<24}  {}",
        output::rfc3339(event.time.as_ref()),
        event.revision,
        event.reason,
        event.subject,
        event.message
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event = v1::Event {
            resume_token: "17".to_owned(),
            time: Some(pbjson_types::Timestamp {
                seconds: 1_772_366_400,
                nanos: 0,
            }),
            revision: 7,
            subject: "group/g1".to_owned(),
            reason: "GroupCreated".to_owned(),
            message: "group g1 was created with 1 server".to_owned(),
        };
        insta::assert_snapshot!(line(&event), @"2026-03-01T12:00:00.000Z       7  GroupCreated        group/g1                  group g1 was created with 1 server");
    }
}
