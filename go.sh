. /work/env/v/bin/activate; cd /work/study; export OMP_NUM_THREADS=1 SUBQUAD_DATA=/work/shared/data PYTHONPATH=/work/study/src
S="nice -n 15 subquad compare --no-bench --out /work/study/runs --dim 64 --depth 2 --heads 4 --dropout 0"
$S listops:size=small --attention softmax,linear --steps 400 --batch 16 --length 512 --learning-rate 1e-3
$S needle:size=small --attention softmax,linear,local:width=32,gated-delta --steps 400 --batch 16 --learning-rate 3e-3
$S recall:size=small --attention softmax,linear,local:width=32,gated-delta --steps 400 --batch 16 --learning-rate 3e-3
$S text:size=small --attention softmax,linear --steps 200 --batch 16 --learning-rate 1e-3
