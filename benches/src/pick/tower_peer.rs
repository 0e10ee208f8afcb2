//! tower's balancers, by the one thread that they are for: the power of two choices by pending
//! requests and by peak EWMA, over endpoints that answer at once.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use http::{Request, Response};
use tower::{
    BoxError, Service, ServiceExt,
    balance::p2c::Balance,
    discover::ServiceList,
    load::{CompleteOnResponse, Load, PeakEwma, PendingRequests},
};

use crate::{
    harness::{Contender, Turn, cpu},
    library::tower_peer::InstantService,
};

type Answer = Response<crate::library::stub::Trailers>;

/// Both, over so many endpoints.
pub(super) fn contenders<'a>(endpoints: usize, picks: usize) -> Vec<Contender<'a>> {
    let pending = |_| PendingRequests::new(InstantService, CompleteOnResponse::default());
    let ewma = |_| {
        let rtt = Duration::from_millis(30);
        PeakEwma::new(InstantService, rtt, 1e10, CompleteOnResponse::default())
    };
    vec![
        contender(
            "tower, p2c by pending requests",
            (0..endpoints).map(pending).collect(),
            picks,
        ),
        contender(
            "tower, p2c by peak EWMA",
            (0..endpoints).map(ewma).collect(),
            picks,
        ),
    ]
}

fn contender<'a, S>(name: &str, services: Vec<S>, picks: usize) -> Contender<'a>
where
    S: Service<Request<()>, Response = Answer, Error = BoxError> + Load + Send + 'static,
    S::Metric: std::fmt::Debug,
    S::Future: Send,
{
    let mut services = Some(services);
    let mut balance: Option<Balance<ServiceList<Vec<S>>, Request<()>>> = None;
    Contender {
        name: name.to_owned(),
        turn: Box::new(move || {
            // Moved into its turn and back: a turn is over when its future is.
            let mut held = balance.take().unwrap_or_else(|| {
                let services = services.take().unwrap_or_default();
                Balance::new(ServiceList::new::<Request<()>>(services))
            });
            let result = turn(&mut held, picks).now_or_never();
            balance = Some(held);
            let result = result.unwrap_or_else(|| Err(anyhow::anyhow!("an endpoint had to wait")));
            std::future::ready(result).boxed()
        }),
    }
}

async fn turn<S>(
    balance: &mut Balance<ServiceList<Vec<S>>, Request<()>>,
    picks: usize,
) -> anyhow::Result<Turn>
where
    S: Service<Request<()>, Response = Answer, Error = BoxError> + Load,
    S::Metric: std::fmt::Debug,
{
    let (cpu_before, start) = (cpu::own(), Instant::now());
    for _ in 0..picks {
        let ready = balance.ready().await.map_err(anyhow::Error::from_boxed)?;
        ready
            .call(Request::new(()))
            .await
            .map_err(anyhow::Error::from_boxed)?;
    }
    let (cpu, wall) = (cpu::own() - cpu_before, start.elapsed());
    Ok(super::figures(cpu, wall, picks))
}
