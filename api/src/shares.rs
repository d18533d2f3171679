//! What clients share: memory for answers, and places for exports and on the feed.
//!
//! There is a bound for all clients together. Within it, no client address gets more than its share. So one client that takes
//! all it can get, and keeps it, shuts nobody else out. For IPv6 one /64 network is one address. Nothing here knows what is
//! shared.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shared::server::subscriber;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// What there is of something that clients share.
#[derive(Debug)]
pub struct Shares {
    all: Arc<Semaphore>,
    share: u32,
    /// What is left of the share of each client that holds or wants something.
    clients: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
}

/// A part of what is shared. It is free again when the value is dropped.
#[derive(Debug)]
pub struct Portion {
    // The order matters: the account looks for permits of its client.
    of_client: OwnedSemaphorePermit,
    of_all: OwnedSemaphorePermit,
    account: Account,
}

/// Why there is nothing for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exhausted {
    /// The client has its share.
    Share,
    /// All clients together have all there is.
    All,
}

impl Shares {
    /// Divides `total` among clients, each of which gets at most `share`.
    pub fn new(total: u32, share: u32) -> Arc<Self> {
        Arc::new(Self {
            all: Arc::new(Semaphore::new(total as usize)),
            share,
            clients: Mutex::default(),
        })
    }

    /// Gives a client a portion at once.
    ///
    /// # Errors
    /// Returns why there is not enough.
    pub fn take_now(self: &Arc<Self>, client: IpAddr, amount: u32) -> Result<Portion, Exhausted> {
        let (account, share) = self.account(client);
        let amount = amount.min(self.share);
        let of_client = share.try_acquire_many_owned(amount);
        let of_client = of_client.map_err(|_| Exhausted::Share)?;
        let of_all = Arc::clone(&self.all).try_acquire_many_owned(amount);
        Ok(Portion {
            of_client,
            of_all: of_all.map_err(|_| Exhausted::All)?,
            account,
        })
    }

    /// Gives a client a portion, for which it waits behind those who came earlier.
    ///
    /// # Errors
    /// Returns why there was not enough in time.
    pub async fn take(
        self: &Arc<Self>,
        client: IpAddr,
        amount: u32,
        patience: Duration,
    ) -> Result<Portion, Exhausted> {
        let (account, share) = self.account(client);
        let amount = amount.min(self.share);
        let mut missing = Exhausted::Share;
        let taking = async {
            let of_client = share.acquire_many_owned(amount).await?;
            missing = Exhausted::All;
            let of_all = Arc::clone(&self.all).acquire_many_owned(amount).await?;
            Ok::<_, AcquireError>((of_client, of_all))
        };
        let taken = timeout(patience, taking).await;
        let Ok(Ok((of_client, of_all))) = taken else {
            return Err(missing);
        };
        Ok(Portion {
            of_client,
            of_all,
            account,
        })
    }

    fn account(self: &Arc<Self>, client: IpAddr) -> (Account, Arc<Semaphore>) {
        let client = subscriber(client);
        let mut clients = self.clients.lock();
        let share = clients
            .entry(client)
            .or_insert_with(|| Arc::new(Semaphore::new(self.share as usize)));
        let account = Account {
            shares: Arc::clone(self),
            client,
        };
        (account, Arc::clone(share))
    }
}

impl Portion {
    /// Returns its size.
    pub fn amount(&self) -> u32 {
        u32::try_from(self.of_all.num_permits()).unwrap_or(u32::MAX)
    }

    /// Gives back all but `amount`.
    pub fn shrink(&mut self, amount: u32) {
        let spare = self.amount().saturating_sub(amount) as usize;
        drop(self.of_client.split(spare));
        drop(self.of_all.split(spare));
    }

    /// Takes more at once if it is there.
    ///
    /// # Errors
    /// Returns why there is not enough.
    pub fn grow(&mut self, amount: u32) -> Result<(), Exhausted> {
        let Account { shares, client } = &self.account;
        let lacking = amount.min(shares.share).saturating_sub(self.amount());
        let more = shares.take_now(*client, lacking)?;
        let Portion {
            of_client, of_all, ..
        } = more;
        self.of_client.merge(of_client);
        self.of_all.merge(of_all);
        Ok(())
    }
}

/// Keeps a client known for as long as it holds or wants something.
#[derive(Debug)]
struct Account {
    shares: Arc<Shares>,
    client: IpAddr,
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut clients = self.shares.clients.lock();
        // Each permit, and everybody who waits for one, refers to the client's semaphore.
        if let Some(share) = clients.get(&self.client)
            && Arc::strong_count(share) == 1
        {
            clients.remove(&self.client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_TIME: Duration = Duration::ZERO;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn a_client_gets_its_share_and_others_get_theirs() {
        let shares = Shares::new(10, 4);
        let take = |client: &str, amount| shares.take_now(address(client), amount);
        let mut first = take("192.0.2.1", 3).unwrap();
        assert_eq!(take("192.0.2.1", 2).unwrap_err(), Exhausted::Share);
        let second = take("::ffff:192.0.2.1", 1).unwrap();
        let _other = take("2001:db8::1", 4).unwrap();
        assert_eq!(take("2001:db8::2", 1).unwrap_err(), Exhausted::Share);
        assert_eq!(take("192.0.2.2", 3).unwrap_err(), Exhausted::All);
        first.shrink(1);
        assert_eq!(first.amount(), 1);
        let third = take("192.0.2.1", 2).unwrap();
        drop((second, third));
        assert_eq!(
            first.grow(5).map(|()| first.amount()),
            Ok(4),
            "the whole share"
        );
        assert_eq!(take("192.0.2.1", 1).unwrap_err(), Exhausted::Share);
        drop(first);
        assert_eq!(
            shares.clients.lock().len(),
            1,
            "clients without a portion are forgotten"
        );
        assert_eq!(shares.all.available_permits(), 6);
    }

    #[tokio::test]
    async fn who_waits_gets_what_becomes_free_and_learns_what_is_missing() {
        let shares = Shares::new(3, 2);
        let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let first = shares.take(one, 2, NO_TIME).await.unwrap();
        let missing = shares.take(one, 1, NO_TIME).await.unwrap_err();
        assert_eq!(missing, Exhausted::Share);
        let missing = shares.take(other, 2, NO_TIME).await.unwrap_err();
        assert_eq!(missing, Exhausted::All);
        assert_eq!(
            shares.clients.lock().len(),
            1,
            "who has waited in vain is forgotten"
        );
        let waiting = shares.take(other, 2, Duration::from_secs(60));
        let (second, ()) = tokio::join!(waiting, async { drop(first) });
        assert_eq!(second.unwrap().amount(), 2);
        assert_eq!(shares.all.available_permits(), 3);
    }
}
