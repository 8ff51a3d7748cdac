"""learn2learn and torchmeta, either way: their tasks as episodes of ours, our images and episodes as theirs.

    fewshot.interop.learn2learn       `TasksetEpisodes`; `meta_dataset`, `taskset_of`, `as_tasks`
    fewshot.interop.learn2learn_maml  `Learn2LearnMaml`, its MAML as a learner of ours
    fewshot.interop.torchmeta         `LoaderEpisodes`; `task_dataset`, `as_batches`; `mend`
    fewshot.interop.images            `PoolImages`, a side of a split as a data set of torch

Both libraries are imported where they are first used: without them these modules import, and what needs one
says so in one line. Neither installs by pip alone on a current Python; `make interop` builds an environment
that has both (`benchmarks/speed/peers.py` says how) and holds the adapters to the real packages.
"""
