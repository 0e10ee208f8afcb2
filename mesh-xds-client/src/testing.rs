//! A client whose control plane is the caller, without sockets and tasks (feature `test-util`).
//!
//! Stages 2 to 7 as the driver runs them, one call after the other: what they cost can be counted. The
//! transport is left out.

use tokio::sync::mpsc;

use crate::{
    Bootstrap, Driver, Error, Variant, XdsClient,
    ads::{Request, Response},
};

/// A client with its driver.
#[derive(Debug)]
pub struct Loopback {
    client: XdsClient,
    driver: Driver,
    variant: Variant,
    requests: mpsc::Receiver<Request>,
}

impl Loopback {
    /// A client with an open stream to its only server.
    ///
    /// # Errors
    /// When the bootstrap names no server.
    pub fn new(bootstrap: Bootstrap, variant: Variant) -> Result<Self, Error> {
        let builder = XdsClient::builder(bootstrap).variant(variant).seed(1);
        let (client, mut driver) = builder.build_with_driver()?;
        let requests = driver.open_loopback();
        Ok(Self {
            client,
            driver,
            variant,
            requests,
        })
    }

    /// The handle of the application.
    pub fn client(&self) -> &XdsClient {
        &self.client
    }

    /// Takes what the application asked for. Returns what the control plane is sent, in protobuf, as
    /// `DeltaDiscoveryRequest` or `DiscoveryRequest` by the variant.
    pub fn requests(&mut self) -> Vec<Vec<u8>> {
        self.driver.take_waiting();
        let mut sent = Vec::new();
        loop {
            self.driver.turn();
            let before = sent.len();
            while let Ok(request) = self.requests.try_recv() {
                sent.push(request.encoded());
            }
            if sent.len() == before {
                return sent;
            }
        }
    }

    /// Takes what the control plane sends, in protobuf, as `DeltaDiscoveryResponse` or
    /// `DiscoveryResponse` by the variant. Bytes that are neither are ignored.
    pub fn respond(&mut self, response: &[u8]) {
        if let Some(response) = Response::decoded(self.variant, response) {
            self.driver.received(0, response);
        }
    }
}
