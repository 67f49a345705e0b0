//! What one client got, against what it was to get. It knows nothing of nodes and cursors: only
//! where the client says that it goes on.

use std::collections::BTreeSet;

use harness::wrong::Wrong;

use crate::script::{GROUP_LANES, Reader, Script, own_lane};

/// What a client reads: the lanes of the group topic, and its user's own.
const PLACES: usize = GROUP_LANES + 1;

/// How far a client is, as of one of its cursors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reached {
    places: [Place; PLACES],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Place {
    /// The number after the last one that came.
    next: usize,
    /// What is below has come before, and need not come again: the client said nothing of it.
    known: usize,
}

pub struct Tally {
    reader: Reader,
    lanes: [usize; PLACES],
    reached: Reached,
    /// The furthest that it ever was.
    furthest: [usize; PLACES],
    /// What the node may think that the client has: it was written when a stream was cut.
    doubted: [usize; PLACES],
    /// Places and numbers that others of their place have overtaken.
    missing: BTreeSet<(usize, usize)>,
    wrong: Wrong,
    pub messages: usize,
    /// Known ones that came again: only to a client that came without a cursor.
    pub repeated: usize,
}

impl Tally {
    pub fn new(reader: Reader) -> Self {
        let lane = |place| if place < GROUP_LANES { place } else { own_lane(reader.user) };
        Self {
            reader,
            lanes: std::array::from_fn(lane),
            reached: Reached::default(),
            furthest: [0; PLACES],
            doubted: [0; PLACES],
            missing: BTreeSet::new(),
            wrong: Wrong::default(),
            messages: 0,
            repeated: 0,
        }
    }

    pub fn reached(&self) -> Reached {
        self.reached
    }

    /// The client resumes from there.
    pub fn resume(&mut self, from: Reached) {
        self.reached = from;
    }

    /// A stream was cut: what was under way may have reached the client's machine, and not it.
    pub fn doubt(&mut self, script: &Script) {
        self.doubted = self.lanes.map(|lane| script.end_for(lane, self.reader));
    }

    /// Whether what was under way then has come since.
    pub fn is_sure(&self) -> bool {
        self.furthest.iter().zip(self.doubted).all(|(furthest, doubted)| *furthest >= doubted)
    }

    /// The client comes without a cursor: it may get again what it had, and gets all the rest.
    pub fn start_over(&mut self) {
        let known = self.furthest.map(|known| Place { next: 0, known });
        self.reached = Reached { places: known };
    }

    /// Takes a message; what is wrong with it.
    pub fn take(&mut self, script: &Script, content: &str) -> Result<(), String> {
        self.messages += 1;
        let found = script.find(content);
        let place = found.and_then(|(lane, _)| self.lanes.iter().position(|own| *own == lane));
        let (Some((lane, number)), Some(place)) = (found, place) else {
            self.wrong.strange += 1;
            return Err(format!("strange: {content:.30}"));
        };
        if !script.is_for(lane, number, self.reader) {
            self.wrong.strange += 1;
            return Err(format!("somebody else's: {content:.30}"));
        }
        let Place { next, known } = self.reached.places[place];
        if number < next {
            let is_late = self.missing.remove(&(place, number));
            let wrong = if is_late { &mut self.wrong.late } else { &mut self.wrong.twice };
            *wrong += 1;
            return Err(format!("{number} of lane {lane} behind {}, late: {is_late}", next - 1));
        }
        self.repeated += usize::from(number < known);
        self.reached.places[place].next = number + 1;
        self.furthest[place] = self.furthest[place].max(number + 1);
        let from = next.max(known).min(number);
        let missing = script.for_reader(lane, from..number, self.reader);
        self.missing.extend(missing.iter().map(|missing| (place, *missing)));
        match missing[..] {
            [] => Ok(()),
            _ => Err(format!("{number} of lane {lane} came, and not {missing:?}")),
        }
    }

    pub fn gap(&mut self) {
        self.wrong.gaps += 1;
    }

    /// Whether all has come; the script is not added to any more.
    pub fn is_done(&self, script: &Script) -> bool {
        let places = self.reached.places.iter().zip(self.lanes);
        let mut ends = places
            .map(|(place, lane)| (place.next.max(place.known), script.end_for(lane, self.reader)));
        ends.all(|(reached, end)| reached >= end)
    }

    /// What has not come by now, as lane and number, is missed.
    pub fn end(&mut self, script: &Script) -> Vec<(usize, usize)> {
        let mut lacking = Vec::new();
        for (place, lane) in self.lanes.into_iter().enumerate() {
            let Place { next, known } = self.reached.places[place];
            let end = script.end_for(lane, self.reader);
            for number in script.for_reader(lane, next.max(known)..end, self.reader) {
                self.missing.insert((place, number));
                lacking.push((lane, number));
            }
        }
        lacking
    }

    pub fn wrong(&self) -> Wrong {
        Wrong { missed: self.missing.len(), ..self.wrong }
    }
}

/// The tally sees each kind of wrong.
#[test]
fn the_tally_tells_what_is_missed_twice_strange_and_late() {
    use crate::script::Audience;
    let (ann, ben) = (0, (1..).find(|user| own_lane(*user) == own_lane(0)).expect("some"));
    let script = Script::default();
    let group = [Audience::Everybody, Audience::Role(1), Audience::Role(0), Audience::Everybody];
    let group = group.map(|audience| script.add(0, audience, 3));
    let own = [ann, ben, ann].map(|user| script.add(own_lane(ann), Audience::User(user), 0));
    let contents: Vec<&str> = group.iter().chain(&own).map(String::as_str).collect();
    let tally = |got: &[usize]| {
        let mut tally = Tally::new(Reader { user: ann, role: 0 });
        got.iter().for_each(|one| drop(tally.take(&script, contents[*one])));
        tally
    };
    let wrong = |got: &[usize]| tally(got).wrong();
    let right = Wrong::default();
    assert_eq!(wrong(&[0, 2, 3, 4, 6]), right);
    assert_eq!(wrong(&[4, 0, 6, 2, 3]), right, "there is no order between partitions");
    assert!(tally(&[0, 2, 3, 4, 6]).is_done(&script) && !tally(&[0, 2, 3, 4]).is_done(&script));
    assert_eq!(wrong(&[0, 3, 4, 6]), Wrong { missed: 1, ..right });
    assert_eq!(wrong(&[0, 2, 2, 3]), Wrong { twice: 1, ..right });
    assert_eq!(wrong(&[0, 1, 2, 5]), Wrong { strange: 2, ..right });
    assert_eq!(wrong(&[2, 0, 3]), Wrong { late: 1, ..right });
    let mut other = tally(&[0]);
    assert!(other.take(&script, "0 3 xx").is_err() && other.take(&script, "9 9 ").is_err());
    assert_eq!(other.wrong(), Wrong { strange: 2, ..right });

    // An older cursor: exactly what came after it, again.
    let mut resumed = tally(&[0, 4]);
    let then = resumed.reached();
    let all_right = |tally: &mut Tally, got: [usize; 3]| {
        got.iter().all(|one| tally.take(&script, contents[*one]).is_ok())
    };
    assert!(all_right(&mut resumed, [2, 3, 6]));
    resumed.resume(then);
    assert!(all_right(&mut resumed, [6, 2, 3]));
    assert!(resumed.take(&script, contents[3]).is_err());
    resumed.resume(then);
    assert!(resumed.take(&script, contents[3]).is_err());
    assert_eq!((resumed.wrong(), resumed.repeated), (Wrong { missed: 1, twice: 1, ..right }, 0));

    // None: what it had may come again, and nothing else is left out.
    let mut anew = tally(&[0, 2]);
    anew.start_over();
    assert!(all_right(&mut anew, [2, 3, 4]));
    assert_eq!((anew.wrong(), anew.repeated), (right, 1));
    anew.start_over();
    assert!(anew.take(&script, contents[6]).is_ok() && anew.is_done(&script));
}
