//! How fast a copy goes: as fast as it may, and as the source bears.
//!
//! Three things hold it back. A *rate*, which somebody has set. *Company*: while clients use the source,
//! too, the copy takes small portions, so that nobody waits long behind one, and a quarter of the time at
//! most. And *easing*: the source is asked for nothing every so often, and when its answers take clearly
//! longer than before the copy began, the copy rests between its portions, more and more; less and less
//! when they are quick again. It never stops. What is copied while slots are held is not held back.
//!
//! Clients can change keys faster than that copies them. So a copy that has gone through all keys, and then has
//! settled no slots for [`LATE`], makes *haste*: it takes larger portions, until some are settled. A rate holds it
//! back all the same.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{self, Instant},
};

use super::{
    Throttle,
    company::{Company, Executed},
    link::{Link, LinkError},
    pages::Kind,
};

/// How often the source is asked.
const ASK: Duration = Duration::from_millis(20);
/// How many of its first answers say what is usual.
const USUAL: u32 = 10;
/// How often it is asked between two looks at who else uses it.
const LOOK: u32 = 25;
/// The smallest part of its time that the copy takes.
const LEAST: f64 = 1.0 / 8.0;
/// How long no slots are settled of a copy that has gone through all keys, before it makes haste.
const LATE: Duration = Duration::from_secs(30);
/// The longest rest between two pieces.
const LONGEST_REST: Duration = Duration::from_secs(1);
/// A value counts as one key for each of these bytes.
const BYTES: f64 = 4096.0;

/// How much is asked of a server at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Portion {
    /// Keys that are copied in one round trip, at most.
    pub(super) keys: usize,
    /// The same where many have changed.
    pub(super) many: usize,
    /// Keys that are looked at by one `SCAN`, about.
    pub(super) scan: u64,
    /// Bytes of a page of a big value, about.
    pub(super) page: u64,
    /// Elements of such a page, at most: adding one costs more than its bytes.
    pub(super) elements: u64,
    /// Pages that are asked for at a time, where it is known where each begins.
    pub(super) pages: usize,
}

impl Portion {
    /// A quarter of a millisecond of a server's time, about; pages take one or two together.
    pub(super) const LARGE: Self = Self {
        keys: 128,
        many: 128,
        scan: 512,
        page: 64 << 10,
        elements: 512,
        pages: 8,
    };
    /// What clients hardly notice that come in between: a tenth of a millisecond of a server's time, about, where
    /// a key that is looked at takes it 2 microseconds, and one that is copied 6. Of 32 keys it was what one in ten
    /// of their requests waited half a millisecond for, of 8 one in thirty (5,000 requests a second on two
    /// cores); and what took a server above a fifth was mostly 64 keys to look at, or 256 elements to add.
    pub(super) const SMALL: Self = Self {
        keys: 8,
        many: 8,
        scan: 32,
        page: 64 << 10,
        elements: 64,
        pages: 1,
    };
    /// Where the copy must outrun writers, or it might never be done.
    pub(super) const HASTY: Self = Self {
        many: 32,
        ..Self::SMALL
    };
}

impl Portion {
    /// How many elements a page of a value has that has so many of them in about so many bytes; 0: nobody
    /// knows.
    pub(super) fn elements_of(self, kind: Kind, length: u64, size: u64) -> u64 {
        match kind {
            Kind::String => self.page,
            _ if size == 0 => self.elements,
            Kind::List | Kind::Set | Kind::Hash | Kind::SortedSet | Kind::Stream => {
                (self.page * length / size).clamp(1, self.elements)
            }
        }
    }
}

impl Company {
    /// The largest part of its time that the copy takes.
    fn most(self) -> f64 {
        match self {
            Self::Nobody => 1.0,
            Self::Clients => 1.0 / 4.0,
        }
    }

    /// How much more it takes after each good answer.
    fn growth(self) -> f64 {
        match self {
            Self::Nobody => 0.05,
            Self::Clients => 0.002,
        }
    }

    /// Whether an answer takes clearly longer than usual: by less cannot be told from chance, or, where
    /// nobody else asks, from waiting behind the copy itself.
    fn is_slow(self, smooth: Duration, usual: Duration) -> bool {
        match self {
            Self::Nobody => smooth > usual * 3 + Duration::from_millis(3),
            Self::Clients => smooth > usual * 3 / 2 + Duration::from_micros(200),
        }
    }
}

/// How much of its time the copy may use the source.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Easing {
    company: Company,
    /// What an answer takes usually.
    usual: Duration,
    /// What it takes now, smoothed.
    smooth: Duration,
    /// From [`LEAST`] to what the company allows.
    share: f64,
}

impl Easing {
    fn new(usual: Duration, company: Company) -> Self {
        Self {
            company: Company::Nobody,
            usual,
            smooth: usual,
            share: 1.0,
        }
        .with(company)
    }

    /// In this company. When clients come, it begins with the least: what they bear is found out.
    fn with(self, company: Company) -> Self {
        let share = match (self.company, company) {
            (Company::Nobody, Company::Clients) => LEAST,
            (Company::Clients, Company::Clients) | (_, Company::Nobody) => self.share,
        };
        Self {
            company,
            share,
            ..self
        }
    }

    /// After an answer that took this long.
    fn after(self, took: Duration) -> Self {
        let smooth = (self.smooth * 7 + took) / 8;
        let share = if self.company.is_slow(smooth, self.usual) {
            self.share * 0.8
        } else {
            self.share + self.company.growth()
        };
        Self {
            smooth,
            share: share.clamp(LEAST, self.company.most()),
            ..self
        }
    }

    /// How long to rest after a piece that took so long.
    fn rest(self, took: Duration) -> Duration {
        took.mul_f64(1.0 / self.share - 1.0).min(LONGEST_REST)
    }
}

/// Until when a rate of so many keys a second is used up, if it was until `free` before these keys.
fn book(free: Instant, now: Instant, keys: f64, rate: u32) -> Instant {
    free.max(now) + Duration::from_secs_f64(keys / f64::from(rate))
}

/// See the module. Shared by all lanes of an attempt.
pub(super) struct Pace {
    throttle: watch::Receiver<Throttle>,
    state: Mutex<State>,
}

struct State {
    easing: Easing,
    /// Since when slots could be settled, and none were. `None`: they cannot be yet.
    unsettled: Option<Instant>,
    rate: Option<NonZeroU32>,
    /// Until when the rate is used up.
    free: Instant,
}

impl Pace {
    /// Of a source that is usually like this.
    pub(super) fn new(throttle: watch::Receiver<Throttle>, usual: Usual) -> Self {
        let state = State {
            easing: Easing::new(usual.answer, usual.company),
            unsettled: None,
            rate: None,
            free: Instant::now(),
        };
        let state = Mutex::new(state);
        Self { throttle, state }
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All keys were copied once, or some slots have been settled.
    pub(super) fn settles(&self) {
        self.with(|state| state.unsettled = Some(Instant::now()));
    }

    /// It is not late for what it could not settle until now: it is paused, or for another reason of its own.
    pub(super) fn excuse(&self, reason: bool) {
        if reason || self.throttle.borrow().paused {
            let now = Instant::now();
            self.with(|state| state.unsettled = state.unsettled.map(|_| now));
        }
    }

    /// When the next may be copied, after so many keys of so many bytes that took so long.
    pub(super) fn next(&self, keys: usize, bytes: u64, took: Duration) -> Instant {
        let now = Instant::now();
        let rate = self.throttle.borrow().rate;
        self.with(|state| {
            let rested = now + state.easing.rest(took);
            if state.rate != rate {
                state.rate = rate;
                state.free = now; // what was used of another rate is no measure of this one
            }
            match rate {
                None => rested,
                Some(rate) => {
                    let keys = keys as f64 + bytes as f64 / BYTES;
                    state.free = book(state.free, now, keys, rate.get());
                    rested.max(state.free)
                }
            }
        })
    }

    /// How long to rest after something that took so long and copied nothing.
    pub(super) fn rest(&self, took: Duration) -> Duration {
        self.with(|state| state.easing.rest(took))
    }

    /// How much may be asked at once.
    pub(super) fn portion(&self) -> Portion {
        self.with(|state| state.portion(Instant::now()))
    }

    /// How much of its time the copy uses the source, in percent.
    pub(super) fn percent(&self) -> u8 {
        self.with(|state| state.easing.share * 100.0) as u8
    }
}

impl State {
    fn portion(&self, now: Instant) -> Portion {
        let is_late = self.unsettled.is_some_and(|since| now - since > LATE);
        match self.easing.company {
            Company::Nobody => Portion::LARGE,
            Company::Clients if is_late => Portion::HASTY,
            Company::Clients => Portion::SMALL,
        }
    }
}

/// How a source is before a copy begins.
pub(super) struct Usual {
    /// What an answer takes.
    answer: Duration,
    company: Company,
}

impl Usual {
    /// Asks for it, for a moment in which nothing is copied.
    pub(super) async fn of(source: &mut Link) -> Result<Self, LinkError> {
        let before = Executed::read(source).await?;
        let mut all = Duration::ZERO;
        for _ in 0..USUAL {
            time::sleep(ASK / 4).await;
            all += ask(source).await?;
        }
        let after = Executed::read(source).await?;
        Ok(Self {
            answer: all / USUAL,
            company: after.company_since(&before),
        })
    }
}

/// Asks the source again and again, and lets the pace know.
pub(super) async fn watch(mut source: Link, pace: Arc<Pace>) -> LinkError {
    match keep_asking(&mut source, &pace).await {
        Err(why) => why,
        Ok(never) => match never {},
    }
}

async fn keep_asking(
    source: &mut Link,
    pace: &Pace,
) -> Result<std::convert::Infallible, LinkError> {
    let mut before = Executed::read(source).await?;
    loop {
        for _ in 0..LOOK {
            time::sleep(ASK).await;
            let took = ask(source).await?;
            pace.with(|state| state.easing = state.easing.after(took));
        }
        let now = Executed::read(source).await?;
        let company = now.company_since(&before);
        pace.with(|state| state.easing = state.easing.with(company));
        before = now;
    }
}

async fn ask(source: &mut Link) -> Result<Duration, LinkError> {
    let begun = Instant::now();
    source.demand("PING", &[b"PING"]).await?;
    Ok(begun.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn it_eases_off_and_comes_back() {
        let mut easing = Easing::new(MS, Company::Nobody);
        for _ in 0..100 {
            easing = easing.after(5 * MS);
        }
        assert_eq!(easing.share, 1.0);
        assert_eq!(easing.rest(MS), Duration::ZERO);
        // One that was slow is chance.
        easing = easing.after(20 * MS).after(MS).after(MS);
        assert!(easing.share > 0.5, "{easing:?}");
        for _ in 0..100 {
            easing = easing.after(20 * MS);
        }
        assert_eq!(easing.share, LEAST);
        assert_eq!(easing.rest(MS), 7 * MS);
        assert_eq!(easing.rest(1000 * MS), LONGEST_REST);
        for _ in 0..100 {
            easing = easing.after(MS);
        }
        assert_eq!(easing.share, 1.0);
    }

    #[test]
    fn in_company_it_begins_with_little_and_never_takes_much() {
        let mut easing = Easing::new(MS, Company::Clients);
        assert_eq!(easing.share, LEAST);
        for _ in 0..1000 {
            easing = easing.after(MS);
        }
        assert_eq!(easing.share, 0.25);
        for _ in 0..100 {
            easing = easing.after(2 * MS);
        }
        assert_eq!(easing.share, LEAST);
        easing = easing.with(Company::Nobody);
        for _ in 0..100 {
            easing = easing.after(2 * MS);
        }
        assert_eq!(easing.share, 1.0);
        assert_eq!(easing.with(Company::Clients).share, LEAST);
    }

    #[test]
    fn it_makes_haste_where_no_slots_are_settled() {
        let now = Instant::now();
        let mut state = State {
            easing: Easing::new(MS, Company::Clients),
            unsettled: None,
            rate: None,
            free: now,
        };
        // The pass may last as long as it does.
        assert_eq!(state.portion(now + 2 * LATE), Portion::SMALL);
        state.unsettled = Some(now);
        assert_eq!(state.portion(now + LATE), Portion::SMALL);
        assert_eq!(state.portion(now + LATE + MS), Portion::HASTY);
        state.easing = state.easing.with(Company::Nobody);
        assert_eq!(state.portion(now + LATE + MS), Portion::LARGE);
    }

    #[test]
    fn who_has_an_excuse_is_not_late() {
        let (throttle, heard) = watch::channel(Throttle::default());
        let company = Company::Clients;
        let pace = Pace::new(
            heard,
            Usual {
                answer: MS,
                company,
            },
        );
        let unsettled = || pace.with(|state| state.unsettled);
        pace.excuse(true);
        assert_eq!(unsettled(), None);
        pace.settles();
        let mut since = unsettled();
        pace.excuse(false);
        assert_eq!(unsettled(), since);
        let mut is_later = || std::mem::replace(&mut since, unsettled()) < unsettled();
        pace.excuse(true);
        assert!(is_later());
        throttle.send_modify(|throttle| throttle.paused = true);
        pace.excuse(false);
        assert!(is_later());
    }

    #[test]
    fn a_rate_is_kept() {
        let now = Instant::now();
        let free = book(now, now, 100.0, 1000);
        assert_eq!(free, now + 100 * MS);
        assert_eq!(book(free, now, 0.5, 500), now + 101 * MS);
        // What was not used is not saved up.
        let later = now + 5000 * MS;
        assert_eq!(book(free, later, 1.0, 1000), later + MS);
    }
}
