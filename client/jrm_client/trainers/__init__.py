"""The reward functions that trainers plug in: one file for each signature that they call.

=============  ================================================  =============================================
module         trainers                                          what is plugged in
=============  ================================================  =============================================
``flow_grpo``  flow_grpo, DiffusionNFT, PaCo-RL                  ``jrm_reward``, ``jrm_score``
``trl``        TRL (GRPO, RLOO)                                  ``jrm_reward``, ``async_jrm_reward``
``verl``       verl-omni, verl                                   ``compute_score``, set by their configuration
``ms_swift``   ms-swift                                          a plugin file: ``orms["jrm"]``
``openrlhf``   OpenRLHF                                          a plugin file: ``reward_func``
=============  ================================================  =============================================

``docs/trainers/`` has the lines to copy for each, also for trainers that send requests of their own and need none of
these. Only ``ms_swift`` imports its trainer, because its class must have ms-swift's base.
"""
