"""The reward functions of ``jrm_client.trainers.flow_grpo``, under their former name, which existing runs import."""

from .trainers.flow_grpo import JRMReward, JRMScore, jrm_reward, jrm_score

__all__ = ["JRMReward", "JRMScore", "jrm_reward", "jrm_score"]
