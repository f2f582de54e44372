//! Who answers a command, and how: the classes of the table, and what they carry. Names only; what is done
//! by them is for whoever routes, splits, merges and answers.

/// Who answers a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// The group that owns the one slot of all its keys.
    Forward,
    /// As [`Class::Forward`], if the keys that it makes of patterns are certain to lie in that slot, too.
    Sort,
    /// As [`Class::Forward`]; but the cursor in it, and in its reply, is one of that group's server alone.
    Elements,
    /// Each group that owns some of its keys answers for these; the replies are merged.
    Split(Split),
    /// Each group that owns slots gets the whole of it; the replies are merged.
    Everywhere(Merge),
    /// As many groups as it takes, and the proxy: their replies alone are not all there is to know.
    Across(Across),
    /// The proxy.
    Local(Local),
    /// All workers of the proxy, each for its sessions.
    Crew(Asked),
    /// The proxy and the homes of channels, together.
    PubSub(PubSub),
    /// The proxy, which has the servers tell of changes.
    Tracking,
    /// The proxy, until all that stands between `MULTI` and `EXEC` goes to its group.
    Transaction(Bound),
    /// All groups that own slots, each on a connection of the session's own; the reply is the least.
    Replicas,
    /// Its subcommands have rows of their own, which decide. Alone it is answered by the proxy, if at
    /// all: the arity of all but `COMMAND` asks for a subcommand.
    Container(Option<Local>),
    /// Nobody, whatever the proxy learns: it is nothing to be passed on to servers that others use. Says
    /// why.
    Denied(&'static str),
}

/// What all workers of the proxy are asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    ClientKill,
    ClientList,
    ClientPause,
    ClientUnblock,
    ClientUnpause,
    Monitor,
}

/// Where a transaction begins or ends, or what it depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
}

/// How a command over many slots is split and merged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Split {
    /// Keys; the merged reply has one value for each, in their order.
    Mget,
    /// Keys with values; done when all parts are.
    Mset,
    /// Keys; the reply is the sum of the parts' numbers.
    Sum,
}

impl Split {
    /// How the parts' replies become one.
    pub fn merge(self) -> Merge {
        match self {
            Self::Mget => Merge::Values,
            Self::Mset => Merge::Same,
            Self::Sum => Merge::Sum,
        }
    }
}

/// How the replies of several groups become one. If a group fails, the whole does, with its error; but
/// for [`Merge::Any`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Merge {
    /// One value for each key, in their order.
    Values,
    /// They all say the same, so that one is enough.
    Same,
    /// Their numbers are added.
    Sum,
    /// One success is enough: only one of them has what it is about.
    Any,
    /// All that their arrays have, each once.
    Union,
    /// The largest of their numbers.
    Most,
    /// Of each event the newest sample, and the highest.
    Events,
    /// Their samples, in the order of time.
    Samples,
    /// Calls by command and duration, added.
    Histograms,
    /// Bytes and counts, added; the highest of shares.
    Figures,
    /// What one of them is executing; else what they all say.
    Running,
}

/// What is asked of groups in a way of its own, and answered with the proxy's help.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Across {
    /// One group after another, page by page; of each, the keys it owns.
    Scan,
    /// All groups; of each, the keys it owns.
    AllKeys,
    /// All groups; a key of one that has some.
    RandomKey,
    /// The proxy, if all groups that can be reached know what it is asked for.
    NoTouch,
    /// One group after another, page by page; of all keys, those of one of Redis Cluster's slots.
    ClusterKeys,
    /// All groups; their figures in one, and the proxy's. A group that fails is left out.
    Info,
    /// All groups, and the proxy, which shows them a script that it has seen.
    Scripts,
    /// All groups; the newest entries of their logs.
    Newest,
    /// All groups; a text of each.
    Report,
    /// One group's settings, and the proxy's own.
    Settings,
    /// All groups, like [`Class::Everywhere`] with [`Merge::Same`], if the proxy was started with
    /// `--allow-config-set`.
    Configure,
}

/// What the proxy answers itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Local {
    AclCat,
    AclGenPass,
    AclHelp,
    AclWhoAmI,
    Auth,
    ClientCaching,
    ClientCapa,
    ClientGetName,
    ClientGetRedir,
    ClientHelp,
    ClientId,
    ClientInfo,
    ClientNoEvict,
    ClientReply,
    ClientSetInfo,
    ClientSetName,
    ClientTrackingInfo,
    ClusterHelp,
    ClusterInfo,
    ClusterKeySlot,
    ClusterLinks,
    ClusterMode,
    ClusterMyId,
    ClusterNodes,
    ClusterReplicas,
    ClusterShards,
    ClusterSlots,
    CommandAll,
    CommandCount,
    CommandGetKeys,
    CommandGetKeysAndFlags,
    CommandHelp,
    CommandInfo,
    CommandList,
    Echo,
    Hello,
    Ping,
    Quit,
    Reset,
    Role,
    Select,
    Time,
}

impl Local {
    /// Whether requests behind it may need another connection to the servers than those before it, or
    /// are answered otherwise.
    pub fn changes_pipe(self) -> bool {
        matches!(
            self,
            Self::ClientReply | Self::Hello | Self::Reset | Self::Select
        )
    }
}

/// Who answers a command that stands between `MULTI` and `EXEC`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Queued {
    /// The group of the transaction's keys.
    ByGroup,
    /// Each group that is asked, that of the keys in its place among the others; and the proxy makes one reply
    /// of theirs.
    ByGroups,
    /// The proxy, once the groups have executed the rest.
    ByProxy,
    /// Nobody: it does not stand there.
    Not,
}

impl Class {
    /// Who answers such a command in a transaction.
    pub fn queued(self) -> Queued {
        match self {
            Self::Forward | Self::Sort | Self::Split(_) | Self::PubSub(PubSub::Publish(_)) => {
                Queued::ByGroup
            }
            // Within a transaction, WAIT waits for nothing: it says how far the replicas are.
            Self::Replicas | Self::Transaction(Bound::Unwatch) => Queued::ByGroup,
            // These need nothing of the proxy.
            Self::Local(Local::Echo | Local::Ping | Local::Time) => Queued::ByGroup,
            // It takes many requests to each group.
            Self::Across(Across::ClusterKeys) => Queued::Not,
            Self::Across(Across::NoTouch) => Queued::ByProxy,
            Self::Elements
            | Self::Everywhere(_)
            | Self::Across(_)
            | Self::PubSub(PubSub::Count(_)) => Queued::ByGroups,
            Self::Local(_)
            | Self::Container(Some(_))
            | Self::Crew(_)
            | Self::Tracking
            | Self::PubSub(PubSub::Subscribe(_) | PubSub::Unsubscribe(_)) => Queued::ByProxy,
            Self::Transaction(Bound::Multi | Bound::Exec | Bound::Discard | Bound::Watch)
            | Self::Container(None)
            | Self::Denied(_) => Queued::Not,
        }
    }
}

/// What one may subscribe to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Topic {
    /// A channel.
    Channel,
    /// All channels that match a pattern.
    Pattern,
    /// A channel of `SSUBSCRIBE`, which no pattern matches.
    Shard,
}

impl Topic {
    /// How many kinds there are.
    pub const COUNT: usize = 3;
}

/// A command of publish and subscribe that the proxy has a part in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PubSub {
    /// Begins subscriptions.
    Subscribe(Topic),
    /// Ends subscriptions.
    Unsubscribe(Topic),
    /// Publishes a message at the home of its channel.
    Publish(Topic),
    /// Asks how many are subscribed to channels.
    Count(Topic),
}
