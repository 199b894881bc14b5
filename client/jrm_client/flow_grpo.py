"""The reward functions of ``jrm_client.trainers.flow_grpo``, under the name that runs already import."""

from .trainers.flow_grpo import JRMReward, JRMScore, jrm_reward, jrm_score

__all__ = ["JRMReward", "JRMScore", "jrm_reward", "jrm_score"]
