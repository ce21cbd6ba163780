package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
)

// Labels that say where an instance is.
const (
	LabelRegion   = "region"
	LabelInstance = "instance_id"
	LabelType     = "instance_type"
	LabelZone     = "zone"
)

// Placement asks the instance that this process runs on where it is, and for
// the address at which others reach it: the public one, or the private one if
// it has none. It speaks IMDSv2 only; AWS_EC2_METADATA_SERVICE_ENDPOINT says
// where.
func Placement(ctx context.Context) (labels map[string]string, address netip.Addr, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	client := imds.New(imds.Options{EnableFallback: aws.FalseTernary})
	doc, err := client.GetInstanceIdentityDocument(ctx, nil)
	if err != nil {
		return nil, address, fmt.Errorf("ask the instance where it is: %w", err)
	}
	labels = map[string]string{LabelRegion: doc.Region, LabelInstance: doc.InstanceID, LabelType: doc.InstanceType, LabelZone: doc.AvailabilityZone}
	for name, value := range labels {
		if value == "" || len(value) > 128 {
			return nil, address, fmt.Errorf("ask the instance where it is: %s is %.128q", name, value)
		}
	}
	text, err := metadata(ctx, client, "public-ipv4")
	if err != nil {
		return nil, address, err
	}
	if text == "" {
		text = doc.PrivateIP
	}
	if address, err = netip.ParseAddr(text); err != nil {
		return nil, address, fmt.Errorf("address of the instance: %w", err)
	}
	return labels, address, nil
}

// metadata returns one item, "" if the instance has none.
func metadata(ctx context.Context, client *imds.Client, path string) (string, error) {
	out, err := client.GetMetadata(ctx, &imds.GetMetadataInput{Path: path})
	var answer *awshttp.ResponseError
	if errors.As(err, &answer) && answer.HTTPStatusCode() == http.StatusNotFound {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("ask the instance for %s: %w", path, err)
	}
	defer out.Content.Close()
	data, err := io.ReadAll(io.LimitReader(out.Content, 4096))
	if err != nil {
		return "", fmt.Errorf("ask the instance for %s: %w", path, err)
	}
	return strings.TrimSpace(string(data)), nil
}
