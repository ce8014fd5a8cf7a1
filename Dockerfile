# For use of the models, and for training, without an environment of your own (this image was never built by the
# authors, who have no Docker; a failure is a bug to report):
#   docker build -t mr-to-ct .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/data" mr-to-ct \
#       test_adapt.py --name recommended --input /data/MR.nii.gz --results_dir /data/results
# --gpus all needs an NVIDIA GPU and the NVIDIA container toolkit; leave it out on a CPU. Own models: --checkpoints_dir /data/...
# On clusters that have Apptainer in place of Docker (not tried, either):
#   apptainer build mr-to-ct.sif docker-daemon://mr-to-ct:latest
#   apptainer run --nv --pwd /opt/mr-to-ct --bind "$PWD:/data" mr-to-ct.sif \
#       test_adapt.py --name recommended --input /data/MR.nii.gz --results_dir /data/results
FROM python:3.12-slim

WORKDIR /opt/mr-to-ct
# The tested versions; --build-arg REQUIREMENTS=requirements.txt takes the newest that fit, on other machines too.
ARG REQUIREMENTS=requirements.lock
COPY requirements.txt requirements.lock ./
RUN pip install --no-cache-dir -r "$REQUIREMENTS"
COPY . .

# Whoever runs it may have no home in the image.
ENV HOME=/tmp PYTHONUNBUFFERED=1
ENTRYPOINT ["python"]
CMD ["test_adapt.py", "--help"]
