//! What the shards are told, each in its order. One whose lane is full is told later, all at once.

use crate::lane::{Order, Sender};
use crate::limits::control as limits;

pub(super) struct Orders {
    shards: Vec<(Sender<Order>, Option<Order>)>,
}

impl Orders {
    pub fn new(shards: Vec<Sender<Order>>) -> Self {
        Self { shards: shards.into_iter().map(|shard| (shard, None)).collect() }
    }

    pub fn give(&mut self, order: &Order) {
        for (_, waiting) in &mut self.shards {
            match waiting {
                Some(waiting) => waiting.join(order.clone()),
                None => *waiting = Some(order.clone()),
            }
        }
        self.flush();
    }

    /// Tries again what found no room.
    pub fn flush(&mut self) {
        for (shard, waiting) in &mut self.shards {
            let Some(order) = waiting.take() else { continue };
            *waiting = shard.try_send(order).err().map(|refusal| refusal.item);
        }
    }

    /// Waits until it may be tried again; for good, if nothing waits.
    pub async fn room(&self) {
        if !self.is_waiting() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(limits::FULL_LANE_WAIT).await;
    }

    fn is_waiting(&self) -> bool {
        self.shards.iter().any(|(_, waiting)| waiting.is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::base::{BroadcastId, Moment};
    use crate::lane::{Doorbell, lane};

    #[test]
    fn what_finds_no_room_is_joined_to_what_follows() {
        let (sender, receiver) = lane("orders", 1, Arc::new(Doorbell::new().expect("a bell")));
        let mut orders = Orders::new(vec![sender]);
        let order = |number: u64| Order {
            ended: vec![(BroadcastId::new(number).expect("small"), Moment(number))],
            applied: number,
            fresh_until: Some(Moment(10 - number)),
        };
        (1..=3).for_each(|number| orders.give(&order(number)));
        assert!(orders.is_waiting());
        assert_eq!(receiver.try_recv(), Some(order(1)));
        orders.flush();
        let ended = [order(2).ended, order(3).ended].concat();
        let joined = Order { ended, applied: 3, fresh_until: Some(Moment(8)) };
        assert_eq!(receiver.try_recv(), Some(joined));
        assert!(!orders.is_waiting() && receiver.is_empty());
    }
}
