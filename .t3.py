exec(open('.t2.py').read().split("run('qwen")[0])
c=parse_model_config(json.load(open(f'/var/tmp/truth/configs/llama-8b/config.json')))
from vllm_safe.plan.plan_split import _splits
for x in _splits(PlanQuestion(c,Serving(max_model_len=-1),(g(11.76),g(23.6)))):
    p=decide_plan(x); print(x.serving.tensor_parallel,x.serving.layer_partition,p.starts,p.reason,p.sure_context,p.longest_context,[round(b.available/2**30,2) for b in p.budgets])
